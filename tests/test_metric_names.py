"""Which direction of a metric is better, by its name alone, and how texts refer to metrics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.errors import InvalidInputError
from ckptstore.metric_names import (
    LESS,
    MORE,
    UNCLEAR,
    WEAK,
    best_in,
    is_timing,
    mode_of,
    parse_choice,
    quoted,
    unquoted,
)

MAXIMIZED = """
    val_dice psnr ssim auroc AP acc1 acc@1 top1 top-5 Top5_Accuracy val/acc_top5 acc~top5
    val_f1_macro F1Score MacroF1 valF1 f1-score F_score F-1 mIoU val_miou map50 mAP50 mAP@.5:.95
    ndcg@10 mrr R2 r_2 kappa success_rate exact_match elo mmlu eval/return episode_reward_mean
    bleu bleu4 rouge rougeL valAcc testacc trainAUROC val_auroc recall@5 recall@10 R@1 P@5
    Hits@1 hit_rate pass@1 dice dice_score dice_coefficient ep_return episode_return
    AverageEpRet rollout/ep_rew_mean win_rate val_pck_0.15 accuracy/val val_acc_epoch f1_macro
    sensitivity metrics/mAP50-95(B) metrics/precision(B) coco/bbox_mAP_50 acc,none acc_norm
    exact_match,strict-match eval_accuracy true_positive_rate roc_auc pr_auc average_precision
    SI-SDR explained_variance cosine_similarity log_likelihood balanced_accuracy
    MulticlassAccuracy BinaryF1 gsm8k v_measure c_index clip_score eval/rewards/accuracies
    max_accuracy best_acc
"""
MINIMIZED = """
    loss val_loss train/loss_epoch valLoss trainloss total_loss box_loss logloss hamming_loss
    wer cer fid fid_score brier_score perplexity perplexity_score ppl lambada_ppl mae rmse RMSE
    rmse_log val/mse mean_absolute_error mean_squared_error abs_rel max_error error val_err
    merror error_rate word_error_rate match_error_rate top5_error top_5_error top1_err dice_loss
    acc_loss reward_loss val_cross_entropy categorical_crossentropy negative_log_likelihood nll
    kl kl_div approx_kl bpb bits_per_byte lpips hd95 edit_distance false_positive_rate
    false_negative_rate fpr FPR95 EER miss_rate latency_ms
"""
REFUSED = """
    reward_model_loss
    loss_accuracy loss_dice error_recall tpr@fpr tpr_at_fpr reward_minus_cost acc_std
    episode_reward_std 1-acc eval/1-ssim one_minus_acc neg_acc acc_gap acc_drop loss_scale
    episode_length anything val lr epoch entropy objective 損失 q q7 accurate lossy topology
"""


@pytest.mark.parametrize("metric", [*MAXIMIZED.split(), "top 1", "Val Accuracy (top 5)"])
def test_more_is_better(metric: str) -> None:
    assert mode_of(metric) == "max"


@pytest.mark.parametrize("metric", MINIMIZED.split())
def test_less_is_better(metric: str) -> None:
    assert mode_of(metric) == "min"


@pytest.mark.parametrize("metric", [*REFUSED.split(), ""])
def test_a_name_that_does_not_say_is_refused_with_the_way_out(metric: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        mode_of(metric)
    name = quoted(metric)
    assert f"{name}:max or {name}:min in a text, mode='max' or mode='min'" in str(raised.value)


def test_each_word_of_the_lists_decides_in_the_forms_that_people_write() -> None:
    for mode, words in (("max", MORE | WEAK), ("min", LESS)):
        for word in words:
            stem, at = word.rstrip("@"), "@1" if word.endswith("@") else ""
            for form in (stem, stem.upper(), f"val_{stem}", f"Test/{stem.title()}"):
                assert mode_of(f"{form}{at}") == mode, form
    assert not MORE & LESS
    assert not (MORE | LESS) & (WEAK | UNCLEAR)


def test_a_word_that_reverses_is_refused_with_each_word() -> None:
    for word in UNCLEAR:
        with pytest.raises(InvalidInputError, match=f"{word}' may reverse it"):
            mode_of(f"loss_{word}")


def test_times_and_rates_of_a_program_are_known_by_the_end_of_their_names() -> None:
    for name in (
        *("eval_runtime", "train_runtime", "val/epoch_time", "time", "evalTime", "elapsed"),
        *("eval_samples_per_second", "eval_steps_per_second", "loss_per_sec", "eval_loss_seconds"),
    ):
        assert is_timing(name), name
    for name in ("", "val_loss", "latency_ms", "second_loss", "time_mixing_loss", "loss_second"):
        assert not is_timing(name), name
    assert mode_of("eval_runtime") == "min"  # best:eval_runtime works as before


@pytest.mark.parametrize(
    ("metric", "meant"),
    [("val_los", "val_loss"), ("acuracy", "accuracy"), ("val/presision", "val/precision")],
)
def test_a_misspelt_name_is_refused_with_the_one_that_was_meant(metric: str, meant: str) -> None:
    with pytest.raises(InvalidInputError, match=f"Did you mean '{meant}'"):
        mode_of(metric)


@pytest.mark.parametrize(
    ("revision", "said"),
    [
        ("best:val_loss", "best by val_loss (min)"),
        ("main@best:val_acc:auto", "best by val_acc (max) of main"),
        ("v1~2@best:depth:min", "best by depth (min) of v1~2"),
        ('run@best:"recall@10"', "best by recall@10 (max) of run"),
        ("best:val_loss~1", ""),
        ("main", ""),
        ("best:", ""),
    ],
)
def test_what_a_revision_calls_the_best_is_said_with_its_direction(
    revision: str, said: str
) -> None:
    assert best_in(revision) == said


@given(st.text(min_size=1), st.sampled_from(["", ":min", ":max"]), st.integers(1, 10**17))
def test_a_quoted_name_is_read_back(metric: str, mode: str, number: int) -> None:
    name = quoted(metric)
    assert unquoted(name) == metric
    assert parse_choice(f"{name}{mode}") == (metric, mode[1:] or "auto", 1)
    assert parse_choice(f"{name}:min:{number}") == (metric, "min", number)
