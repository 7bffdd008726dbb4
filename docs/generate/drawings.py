"""The drawings of the home page and of the concepts."""

from __future__ import annotations

from canvas import Canvas


def drawings() -> dict[str, str]:
    """Every drawing as SVG, by its file name."""
    return {
        "branch.svg": _branch(),
        "checkpoint.svg": _checkpoint(),
        "disk.svg": _disk(),
        "gc.svg": _gc(),
        "policy.svg": _policy(),
        "revision.svg": _revision(),
    }


def _disk() -> str:
    canvas = Canvas(860, 372, "What is on disk: operations, manifests, pages and chunks")
    for x, name, what in (
        (20, "`ops/", "branches and tags"),
        (228, "`checkpoints/", "manifests"),
        (450, "`objects/", "pages"),
        (664, "`objects/", "chunks of arrays"),
    ):
        canvas.text(x, 24, name, kind="head")
        canvas.text(x, 44, what, kind="small")
    canvas.box(20, 138, 160, 84, "operation 42", "`v1.0 → 3f9a…", "`main → b41c…", kind="green")
    canvas.box(228, 72, 170, 84, "`3f9a….json", "step 100", "val_loss 0.42", kind="amber")
    canvas.box(228, 216, 170, 84, "`b41c….json", "step 200", "val_loss 0.31", kind="amber")
    canvas.arrow(180, 172, 228, 114, bend=24)
    canvas.arrow(180, 190, 228, 252, bend=24)
    canvas.arrow(313, 216, 313, 160)
    canvas.text(321, 192, "parent", kind="small")
    for y, name in ((60, "head, step 100"), (160, "frozen backbone"), (260, "head, step 200")):
        canvas.box(450, y, 150, 52, name, kind="blue")
    canvas.arrow(398, 104, 450, 86, bend=24)
    canvas.arrow(398, 126, 450, 178, bend=24)
    canvas.arrow(398, 246, 450, 194, bend=24)
    canvas.arrow(398, 266, 450, 286, bend=24)
    for y, count in ((60, 2), (160, 4), (260, 2)):
        canvas.arrow(600, y + 26, 660, y + 26)
        for number in range(count):
            canvas.box(664 + 46 * number, y + 6, 38, 40, kind="blue")
    canvas.text(664, 236, "stored once, used twice", kind="small")
    canvas.text(
        430,
        350,
        "Each file in objects/ and checkpoints/ is named by the BLAKE3 digest of its bytes.",
        anchor="middle",
        kind="small",
    )
    return canvas.svg()


def _checkpoint() -> str:
    canvas = Canvas(860, 300, "A checkpoint: a manifest with pages, chunks, a bundle, a structure")
    canvas.box(20, 106, 190, 92, "manifest", "step, metrics, message", "parents", kind="amber")
    canvas.box(290, 30, 170, 56, "page", "names and digests", kind="blue")
    canvas.box(290, 116, 170, 56, "page", "names and digests", kind="blue")
    canvas.box(290, 216, 170, 62, "structure", "dicts, lists, numbers", kind="blue")
    canvas.arrow(210, 134, 290, 58, bend=36)
    canvas.arrow(210, 150, 290, 144, bend=36)
    canvas.arrow(210, 172, 290, 247, bend=36)
    for number, y in enumerate((20, 62)):
        canvas.box(560, y, 200, 32, f"chunk {number + 1} of a large array", kind="blue")
        canvas.arrow(460, 52 + 10 * number, 560, y + 16, bend=40)
    canvas.box(560, 120, 200, 48, "bundle of small arrays", kind="blue")
    canvas.arrow(460, 144, 560, 144)
    canvas.text(560, 242, "everything that is not an array,", kind="small")
    canvas.text(560, 260, "as JSON: no pickle", kind="small")
    canvas.text(115, 224, "its digest is the checkpoint's id", anchor="middle", kind="small")
    return canvas.svg()


def _label(canvas: Canvas, x: float, y: float, text: str, kind: str) -> None:
    width = 22 + 8 * len(text.removeprefix("`"))
    canvas.box(x - width / 2, y, width, 28, text, kind=kind)


def _branch() -> str:
    canvas = Canvas(860, 250, "A branch is a name for the newest checkpoint of a run")
    main = [(80 + 130 * number, 80) for number in range(5)]
    tuned = [(470, 180), (600, 180)]
    for (x1, y1), (x2, y2) in [
        *zip(main[1:], main[:-1], strict=True),
        (tuned[1], tuned[0]),
    ]:
        canvas.arrow(x1 - 16, y1, x2 + 18, y2)
    canvas.arrow(456, 172, 352, 94)
    for x, y in main:
        canvas.dot(x, y, 15, "amber")
    for x, y in tuned:
        canvas.dot(x, y, 15, "amber")
    _label(canvas, 600, 24, "`main", "green")
    _label(canvas, 340, 24, "`v1.0", "")
    _label(canvas, 600, 208, "`finetune", "green")
    canvas.text(640, 85, "the next commit moves main", kind="small")
    canvas.text(640, 185, "the next commit moves finetune", kind="small")
    canvas.text(80, 120, "step 100", anchor="middle", kind="small")
    canvas.text(322, 120, "a tag never moves", anchor="end", kind="small")
    canvas.text(80, 212, "An arrow leads from a checkpoint to its parent.", kind="small")
    return canvas.svg()


def _revision() -> str:
    canvas = Canvas(860, 220, "Revisions: texts that name a checkpoint")
    rows = ((100, 0.42), (200, 0.35), (300, 0.29), (400, 0.31), (500, 0.33))
    names = {
        0: ("`v1.0",),
        1: ("`main@step=200", "`main~3"),
        2: ("`best:val_loss",),
        4: ("`main", "`latest"),
    }
    for number, (step, loss) in enumerate(rows):
        x = 90 + 170 * number
        if number:
            canvas.arrow(x - 16, 130, x - 170 + 18, 130)
        canvas.dot(x, 130, 15, "amber")
        canvas.text(x, 172, f"step {step}", anchor="middle", kind="small")
        canvas.text(x, 190, f"val_loss {loss:.2f}", anchor="middle", kind="small")
        for level, name in enumerate(names.get(number, ())):
            _label(canvas, x, 80 - 36 * level, name, "green")
    return canvas.svg()


def _policy() -> str:
    canvas = Canvas(860, 230, "A policy decides which checkpoints stay")
    losses = (0.52, 0.41, 0.36, 0.29, 0.33, 0.31, 0.35, 0.34)
    reasons = {
        3: ("best by", "val_loss"),
        6: ("newest 2",),
        7: ("newest 2", "head of main"),
        0: ("tag v1.0",),
    }
    canvas.text(30, 28, '`MaxToKeep(2) | KeepBest("val_loss")', kind="head")
    for number, loss in enumerate(losses):
        x = 60 + 105 * number
        kept = number in reasons
        canvas.box(
            x - 38,
            60,
            76,
            54,
            f"{(number + 1) * 100}",
            f"{loss:.2f}",
            kind="green" if kept else "gone",
        )
        for row, text in enumerate(reasons.get(number, ("expires",))):
            canvas.text(x, 138 + 18 * row, text, anchor="middle", kind="small")
    canvas.text(30, 200, "Step above, val_loss below. What no rule keeps expires:", kind="small")
    canvas.text(30, 218, "its arrays go, its step and metrics stay in the log.", kind="small")
    return canvas.svg()


def _gc() -> str:
    canvas = Canvas(860, 300, "gc deletes the objects that no kept checkpoint references")
    for x, head in ((20, "before"), (460, "after")):
        canvas.text(x, 24, head, kind="head")
    canvas.line(430, 16, 430, 284)
    for left, is_after in ((20, False), (460, True)):
        middle = left + 240
        canvas.box(left, 50, 150, 56, "step 100", "`v1.0", kind="amber")
        canvas.box(
            left, 130, 150, 56, "step 200", "manifest only" if is_after else "expires", kind="gone"
        )
        canvas.box(left, 210, 150, 56, "step 300", "`main", kind="amber")
        for number, (owner, kind) in enumerate(
            (
                ("100", "blue"),
                ("all", "blue"),
                ("200", "gone" if is_after else "blue"),
                ("300", "blue"),
            )
        ):
            y = 46 + 58 * number
            if owner == "200" and is_after:
                canvas.box(middle, y, 130, 42, "deleted", kind="gone")
                continue
            canvas.box(
                middle, y, 130, 42, "shared" if owner == "all" else f"only {owner}", kind=kind
            )
        lines = [(78, 67), (78, 118), (238, 132), (238, 241)]
        if not is_after:
            lines += [(158, 125), (158, 183)]
        for y1, y2 in lines:
            canvas.arrow(left + 150, y1, middle, y2, bend=40)
    return canvas.svg()
