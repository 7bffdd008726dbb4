"""Templates of file names: what they match, and which one the names in a folder suggest."""

from __future__ import annotations

import pytest

from ckptstore.errors import InvalidInputError
from ckptstore.imports.template import Template, proposed


@pytest.mark.parametrize(
    ("text", "name", "numbers"),
    [
        ("ckpt_{step}.pt", "ckpt_0100.pt", {"step": 100}),
        ("epoch={epoch}-val_loss={val_loss}.ckpt", "epoch=3-val_loss=0.25.ckpt", None),
        ("{loss}.ckpt", "1.5e-3.ckpt", {"loss": 0.0015}),
        ("{loss}.ckpt", "-2.ckpt", {"loss": -2}),
        ("m-{acc}.*", "m-.5.pth.tar", {"acc": 0.5}),
        ("{step}_{step}.pt", "7_7.pt", {"step": 7}),
        ("a?{global_step}", "ab3", {"global_step": 3}),
        ("[x]{step}.pt", "[x]1.pt", {"step": 1}),
    ],
)
def test_a_field_matches_a_number(text: str, name: str, numbers: dict[str, float] | None) -> None:
    expected = {"epoch": 3, "val_loss": 0.25} if numbers is None else numbers
    assert Template.parse(text).match(name) == expected


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ckpt_{step}.pt", "ckpt_1.5.pt"),
        ("ckpt_{step}.pt", "ckpt_last.pt"),
        ("ckpt_{step}.pt", "ckpt_1.ptx"),
        ("{step}_{step}.pt", "7_8.pt"),
        ("*.pt", "a/b.pt"),
        ("a.pt", "abpt"),
    ],
)
def test_other_names_do_not_match(text: str, name: str) -> None:
    assert Template.parse(text).match(name) is None


@pytest.mark.parametrize("text", ["ckpt_{step.pt", "ckpt_step}.pt", "ckpt_{}.pt"])
def test_a_lone_brace_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="a brace belongs to a field"):
        Template.parse(text)


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("ckpt_100.pt", "ckpt_{step}.pt"),
        ("model-100.pt", "model-{step}.pt"),
        ("100.pt", "{step}.pt"),
        ("checkpoint-500", "checkpoint-{step}"),
        ("epoch=3-val_loss=0.25.ckpt", "epoch={epoch}-val_loss={val_loss}.ckpt"),
        ("epoch=3-step=400.ckpt", "epoch={epoch}-step={step}.ckpt"),
        ("net_epoch_5_loss_0.31.pth.tar", "net_epoch_{epoch}_loss_{loss}.pth.tar"),
        ("ckpt_e10_s500.pt", "ckpt_e{epoch}_s{step}.pt"),
        ("iter_0000100", "iter_{iter}"),
    ],
)
def test_a_name_suggests_a_template_that_matches_it(name: str, template: str) -> None:
    assert proposed([name]) == [(template, 1)]
    assert Template.parse(template).match(name)


def test_the_template_that_fits_most_names_comes_first() -> None:
    names = ["last.ckpt", "a_1.pt", "a_2.pt", "b1.pt", "config.json"]
    assert proposed(names) == [("a_{step}.pt", 2), ("b{step}.pt", 1)]
