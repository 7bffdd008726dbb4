"""Metric names: whether more or less of a metric is better, and how a text refers to a metric.

A name is split into words: at everything that is not a letter or digit, and where a word of the
lists ends by its digits or its capitals ("acc1", "valLoss"). Words of `MORE` and `LESS` decide,
neighbours also as one ("cross_entropy"). A name is refused, never guessed, when

- no word of it is known;
- a word such as "std", "gap" or "minus" may reverse the direction of the metric it mentions;
- it has words of both lists, unless the last word is of `LESS` and directly follows another known
  one: "dice_loss" and "top5_error" are losses and errors, but "loss_accuracy", "loss_dice" and
  "tpr@fpr" may be either.

A name that ends in a word of `TIMING`, or in "per_second", is that of a time or a rate of the
program. It is decided as any other, but a table marks no checkpoint as the best by it.

"score" and the like decide only where no other word does: an "fid_score" is an FID.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

from ckptstore.errors import InvalidInputError, shortened, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Mode = Literal["min", "max"]
COUNT_DIGITS_MAX = 18
JOINED_MAX = 3  # neighbouring words that are looked up as one, as in "negative log likelihood"
NAME_LENGTH_MAX = 80  # of a name that a message repeats
SIMILARITY_MIN = 0.75  # of a known word that is proposed in place of another

_MORE = """
acc accs accuracy accuracies auc aucs auroc rocauc roc auprc aupr prauc aucpr f1 f2 f1s fscore fbeta
fmeasure f1score macrof1 microf1 precision prec recall sensitivity specificity tpr tnr ppv npv tp tn
truepositive truepositives truenegative truenegatives kappa qwk mcc matthews youden informedness
gmean top correct correctly hits hit jaccard purity homogeneity completeness nmi ari ami silhouette
concordance cindex agreement coverage
ap aps map maps mar ar iou ious miou mious giou diou ciou fwiou dice dices mdice dsc nsd macc aacc
mfscore mprecision mrecall pq hota mota motp idf1 pck pckh oks lddt plddt gdt tmscore dockq ndcg dcg
mrr r@ p@
r2 rsquared corr correlation correlations pearson pearsonr spearman spearmanr kendall plcc srcc
explainedvariance likelihood loglik loglikelihood logprob logprobs elbo similarity
bleu sacrebleu gleu rouge rougel rougelsum meteor cider spice chrf comet bleurt bertscore em
exactmatch pass solved faithfulness helpfulness coherence fluency pesq stoi mos dnsmos utmos
psnr ssim msssim mssim vif vmaf clipscore sdr sisdr snr sisnr
reward rewards rew eprewmean return returns ret success successes win wins winrate elo trueskill
fitness profit pnl revenue sharpe throughput fps quality
mmlu cmmlu gsm8k hellaswag winogrande truthfulqa humaneval mbpp piqa boolq triviaqa gpqa ifeval bbh
agieval ceval openbookqa mteb
"""
_LESS = """
loss losses logloss mlogloss ce bce cce xent crossentropy nll nlls nllloss hinge huber
negloglikelihood negloglik negativeloglikelihood kl kld kldiv divergence jsd mmd penalty cost costs
regret risk deviance aic bic
err errs error errors merror mae mse rmse nrmse msle rmsle mape smape wape wmape mase mre medae
rmspe rmsd mbe crps brier ece mce absrel sqrel silog mpjpe ade fde minade minfde epe residual
residuals hamming miss missrate missed wrong incorrect mistake mistakes fail failed failure failures
false fpr fnr fdr frr eer fp fn falsepositive falsepositives falsenegative falsenegatives mindcf
misclassification
frechet wasserstein emd chamfer hausdorff hd95 assd asd levenshtein editdistance daviesbouldin
ppl pplx perplexity wer cer ter mer wil der bpb bpc bpd bpw bits bitsperbyte nats mcd hallucination
hallucinations toxicity
fid kid fvd fad sfid lpips niqe brisque piqe dists
latency runtime collision collisions crash crashes violation violations drawdown
"""
_UNCLEAR = """
std stds stdev stddev stderr sem ci var variance variances gap drop drops diff difference delta
change increase decrease reduction improvement inverse inv minus neg negative no non not vs count
num length len scale weight weights threshold thresh coef
"""
_TIMING = "runtime walltime duration elapsed time seconds secs minutes hours"
MORE = frozenset(_MORE.split())
LESS = frozenset(_LESS.split())
UNCLEAR = frozenset(_UNCLEAR.split())
TIMING = frozenset(_TIMING.split())  # last words of times of a program, not results of a model
UNITS = frozenset({"second", "sec", "s", "minute", "min", "hour", "h"})  # of its rates
WEAK = frozenset({"score", "scores", "measure", "index"})  # more, if no other word decides
_PREFIX = re.compile(
    "(?:val|valid|validation|train|training|test|eval|dev|best|mean|avg|macro|micro|weighted)+"
)
_TOKEN = re.compile(r"[a-z0-9]+@?", re.IGNORECASE)
_PIECE = re.compile(r"[A-Z]+(?![a-z])[0-9]*|[A-Z]?[a-z]+[0-9]*|[0-9]+")
_COMPLEMENT = re.compile(r"(?:^|/)\s*1\s*-")  # "1-acc"
_CONDITION = re.compile(r"@|(?<![a-z])at(?![a-z])", re.IGNORECASE)  # "tpr@fpr", "tpr_at_fpr"
_QUOTED = r'"(?:[^"\\]|\\["\\])+"'
_PLAIN = r'[^":@~][^:@~]*'
QUOTED_OR_PLAIN = rf"(?:{_QUOTED}|{_PLAIN})"  # in a revision
_BEST_AT_END = re.compile(
    rf"(?:^|@)best:(?P<metric>{QUOTED_OR_PLAIN})(?::(?P<mode>min|max|auto))?$"
)
_MODE_AT_END = re.compile(r"(?P<name>.+?)(?P<rest>(?::(?:min|max|auto)(?::[0-9]+)?)?)", re.DOTALL)
_CHOICE = re.compile(
    rf'(?P<metric>{_QUOTED}|[^":][^:]*)'
    rf"(?::(?P<mode>[^:]*)(?::(?P<count>[0-9]{{1,{COUNT_DIGITS_MAX}}})?)?)?"
)


def mode_of(metric: str) -> Mode:
    """Return "min" if less of a metric is better, "max" if more is, by the words of its name.

    Args:
        metric: The name, such as "val_loss" or "recall@10".

    Raises:
        InvalidInputError: The name does not say. The message explains how to give the direction.
    """
    words = [word for word in _words(metric) if not word.isdigit()]
    known = [(place, word) for place, word in enumerate(words) if _decides(word)]
    unclear = next((word for word in words if word in UNCLEAR), None)
    if unclear is None and _COMPLEMENT.search(metric):
        unclear = "1-"
    if unclear is not None:
        raise _unsaid(metric, f": {unclear!r} may reverse it")
    if not known:
        if any(word in WEAK for word in words):
            return "max"
        raise _unsaid(metric, "", words=words)
    is_less = [word in LESS for _, word in known]
    if len(set(is_less)) == 1:
        return "min" if is_less[0] else "max"
    (before, _), (last, _) = known[-2:]
    if is_less[-1] and last == before + 1 and not _CONDITION.search(metric):
        return "min"
    more = next(word for _, word in known if word in MORE)
    less = next(word for _, word in known if word in LESS)
    raise _unsaid(metric, f": more is better by {more!r}, less by {less!r}")


def is_timing(metric: str) -> bool:
    """Return True if a metric is a time or a rate of the program, by the words of its name.

    Trainer of Hugging Face logs "eval_runtime" and "eval_samples_per_second" with each evaluation.
    They may have a direction, but no checkpoint is better by them.

    Args:
        metric: The name.
    """
    *others, last = ["", *_words(metric)]
    return last in TIMING or (last in UNITS and others[-1:] == ["per"])


def quoted(metric: str) -> str:
    """Return a metric's name as revisions and METRIC:MODE:N write it, quoted if needed."""
    if re.fullmatch(_PLAIN, metric):
        return metric
    escaped = re.sub(r'(["\\])', r"\\\1", metric)
    return f'"{escaped}"'


def unquoted(text: str) -> str:
    """Return the name that `quoted` wrote."""
    return re.sub(r'\\(["\\])', r"\1", text[1:-1]) if text.startswith('"') else text


def best_in(revision: str) -> str:
    """Describe a revision that ends with best:METRIC, with the direction; "" for any other.

    Args:
        revision: A resolved revision, such as "main@best:val_acc".

    Returns:
        For example "best by val_acc (max) of main"; without "of main" for "best:val_acc".
    """
    match = _BEST_AT_END.search(revision)
    if match is None:
        return ""
    metric = unquoted(match["metric"])
    mode = match["mode"] if match["mode"] in ("min", "max") else mode_of(metric)
    base = f" of {revision[: match.start()]}" if match.start() else ""
    return f"best by {metric} ({mode}){base}"


def parse_choice(text: str) -> tuple[str, str, int] | None:
    """Return the metric, the mode and the number of METRIC, METRIC:MODE or METRIC:MODE:N.

    Args:
        text: For example "val_loss", "val_acc:max:2" or '"mAP@.5:.95":max'. A name that contains
            ":" or begins with a quotation mark must be quoted.

    Returns:
        The name, the mode ("auto" without one, not checked), and the number (1 without one); None
        for text of another form.
    """
    match = _CHOICE.fullmatch(text)
    if match is None:
        return None
    return unquoted(match["metric"]), match["mode"] or "auto", int(match["count"] or 1)


def quoting(text: str) -> str:
    """Return a sentence with METRIC[:MODE[:N]] where ":" is a part of the name, quoted.

    Args:
        text: A text that could not be parsed.

    Returns:
        The sentence after a space; "" where no ":" is left for the name.
    """
    match = _MODE_AT_END.fullmatch(text)
    if match is None or ":" not in match["name"] or text.startswith('"'):
        return ""
    return f" A name that contains ':' is quoted: {quoted(match['name'])}{match['rest']}."


def known_names(name: str, known: Sequence[str], *, what: str) -> str:
    """Return the known names for a message, and the one that was probably meant."""
    if not known:
        return f"There are no {what}."
    listed = f"Known {what}: {', '.join(known[:12])}{', …' if len(known) > 12 else ''}."
    alike = get_close_matches(name, known, n=1)
    return f"{listed} Did you mean {alike[0]}?" if alike else listed


def _words(metric: str) -> Iterator[str]:
    """Yield the words of a name as in the lists; unknown words in lower case."""
    tokens = [word for token in _TOKEN.findall(metric) for word in _split(token)]
    while tokens:
        ends = range(JOINED_MAX, 1, -1)
        end = next((end for end in ends if _decides("".join(tokens[:end]))), 1)
        yield "".join(tokens[:end])
        del tokens[:end]


def _decides(word: str) -> bool:
    return word in MORE or word in LESS


def _split(token: str) -> Iterator[str]:
    """Yield the words in letters and digits: the whole if a list has it, else its pieces."""
    whole = _listed(token.lower())
    if whole is not None:
        yield whole
        return
    for piece in _PIECE.findall(token):
        word = piece.lower()
        yield _listed(word) or word.rstrip("0123456789") or word


def _listed(word: str) -> str | None:
    """Return the word of a list that matches, without a number or a prefix such as "val"."""
    for form in (word, word.rstrip("@0123456789")):
        rest = _PREFIX.sub("", form, count=1) if _PREFIX.match(form) else form
        for candidate in (form, rest):
            if _decides(candidate) or candidate in WEAK or candidate in UNCLEAR:
                return candidate
    return None


def _unsaid(metric: str, why: str, *, words: Sequence[str] = ()) -> InvalidInputError:
    """Return the error for a name that does not say its direction."""
    name = quoted(shortened(metric, NAME_LENGTH_MAX))
    alike = next(
        (
            f" Did you mean {shown(metric.lower().replace(word, close[0]))}?"
            for word in words
            if len(word) > 2
            and not _PREFIX.fullmatch(word)
            and (close := get_close_matches(word, sorted(MORE | LESS), 1, SIMILARITY_MIN))
        ),
        "",
    )
    return InvalidInputError(
        f"The name of the metric {shown(metric)} does not say whether more or less of it is "
        f"better{why}. Give the direction: {name}:max or {name}:min in a text, mode='max' or "
        f"mode='min' in Python.{alike}"
    )
