"""Arguments of other tools: each one is an error that says what it is here."""

from __future__ import annotations

import inspect
import re

import keras
import pytest
import torch

from ckptstore import InvalidInputError
from ckptstore.training import CheckpointManager, callbacks
from ckptstore.training.arguments import NAMES, explained
from ckptstore.training.callbacks import (
    BackupAndRestore,
    Callback,
    CallbackList,
    CSVLogger,
    EarlyStopping,
    ModelCheckpoint,
    ReduceLROnPlateau,
)

KINDS = {name: getattr(callbacks, name, CheckpointManager) for name in NAMES}


def options(kind):
    return [*inspect.signature(kind).parameters]


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in sorted(NAMES) for name in sorted(NAMES[kind])]
)
def test_each_name_of_the_table_is_refused_with_what_to_do(kind, name):
    assert name not in options(KINDS[kind])
    with pytest.raises(InvalidInputError) as caught:
        KINDS[kind](**{name: 3})
    text = str(caught.value)
    assert text.startswith(f"{kind} has no argument {name!r}. ")
    named = re.search(r"Did you mean (\w+)\?$", text)
    if named:
        assert named[1] in options(KINDS[kind])
    else:
        assert text.endswith(NAMES[kind][name])


def test_what_a_sentence_of_the_table_names_exists():
    """A name before "=" is an argument of a class or a method, and one before "(" can be called."""
    arguments = {"model", "optimizer", "meta", "tag"}
    known = {*options(CheckpointManager), *options(CheckpointManager.save), *arguments}
    known |= {*options(CheckpointManager.restore_or_initialize)}
    sentences = {text for names in NAMES.values() for text in names.values()}
    for sentence in sentences:
        assert set(re.findall(r"(\w+)=", sentence)) <= known
        for owner in re.findall(r"manager\.(\w+)\(", sentence):
            assert hasattr(CheckpointManager, owner)


def test_all_arguments_of_tensorflow_are_explained_at_once():
    with pytest.raises(InvalidInputError) as caught:
        CheckpointManager(
            checkpoint=object(),
            directory="ckpt",
            max_to_keep=3,
            keep_checkpoint_every_n_hours=2,
            step_counter=torch.zeros(()),
            checkpoint_interval=100,
            init_fn=print,
        )
    assert str(caught.value).split("CheckpointManager has no argument ") == [
        "",
        "'checkpoint'. Pass the objects by name: CheckpointManager(store, model=model, "
        "optimizer=optimizer). ",
        "'directory'. Did you mean store? ",
        "'keep_checkpoint_every_n_hours'. Did you mean keep_every_n_hours? ",
        "'step_counter'. Pass the step to each save: manager.save(step). ",
        "'checkpoint_interval'. Did you mean save_interval_steps? ",
        "'init_fn'. Pass it to manager.restore_or_initialize(init_fn=...).",
    ]


def test_with_a_store_too():
    with pytest.raises(InvalidInputError, match=r"checkpoint_interval.*save_interval_steps\?.*gc_"):
        CheckpointManager("memory://", checkpoint_interval=100, gc_evry=3)


def test_an_object_without_a_state_is_named_as_that_and_as_a_typo():
    with pytest.raises(InvalidInputError, match=r"policies=3 cannot be tracked.*mean policy\?$"):
        CheckpointManager("memory://", policies=3)
    with pytest.raises(InvalidInputError, match=r"net=3 cannot be tracked.*load_state_dict\.$"):
        CheckpointManager("memory://", net=3)


def test_objects_without_names_are_explained():
    with pytest.raises(InvalidInputError, match=r"Only the store has no name\. Pass the"):
        CheckpointManager(torch.nn.Linear(1, 1), "ckpt", max_to_keep=3)


def test_an_object_with_a_state_may_have_any_of_the_names():
    model = torch.nn.Linear(1, 1)
    with CheckpointManager("memory://", checkpoint=model, options=None) as manager:
        assert manager.tracked == {"checkpoint": model}
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'store'"):
        CheckpointManager(checkpoint=model)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'store'"):
        CheckpointManager(model=model)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: EarlyStopping(monitr="loss"), "'monitr'. Did you mean monitor?"),
        (lambda: EarlyStopping(Patience=3), "'Patience'. Did you mean patience?"),
        (
            lambda: ModelCheckpoint("a", save_weight_only=True),
            "'save_weight_only'. Did you mean save_weights_only?",
        ),
        (lambda: ReduceLROnPlateau(epsilon=1e-4), "'epsilon'. Did you mean min_delta?"),
        (lambda: BackupAndRestore(backup_dir="a"), "'backup_dir'. Did you mean store?"),
        (lambda: CSVLogger("a", seperator=";"), "'seperator'. Did you mean separator?"),
        (lambda: CallbackList([], add_history=True), "'add_history'. Use a CSVLogger"),
    ],
    ids=["monitor", "case", "weights", "epsilon", "backup", "csv", "list"],
)
def test_callbacks_name_the_argument_that_was_meant(make, text):
    with pytest.raises(InvalidInputError, match=re.escape(text)):
        make()


def test_a_subclass_gets_the_same_error():
    class Mine(EarlyStopping):
        def __init__(self, **kwargs):
            super().__init__("loss", **kwargs)

    assert Mine(patience=3).patience == 3
    with pytest.raises(InvalidInputError, match="EarlyStopping has no argument 'pateince'"):
        Mine(pateince=3)


def test_other_wrong_calls_remain_as_python_has_them():
    with pytest.raises(TypeError, match="unexpected keyword argument 'xyzzy'"):
        EarlyStopping(xyzzy=3)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'filename'"):
        CSVLogger()
    with pytest.raises(TypeError, match="takes no arguments"):
        Callback(3)

    class Broken:
        @explained
        def __init__(self, wide=1):
            {}[[]]  # a TypeError of its own

    with pytest.raises(TypeError, match="unhashable"):
        Broken(wide=2)


def test_every_argument_of_keras_2_and_3_is_known_or_refused_by_name():
    """Those of Keras 3 by its signatures, those that it dropped by hand."""
    dropped = {
        "ModelCheckpoint": {"period", "options", "load_weights_on_restart"},
        "BackupAndRestore": {"save_before_preemption"},
        "ReduceLROnPlateau": {"epsilon"},
        "TensorBoard": {"write_grads", "batch_size", "embeddings_layer_names", "embeddings_data"},
        "ProgbarLogger": {"count_mode", "stateful_metrics"},
        "CallbackList": {"add_history", "add_progbar"},
    }
    for name in callbacks.__all__:
        theirs = getattr(keras.callbacks, name, None)
        others = dropped.get(name, set()) | ({*options(theirs)} if theirs else set())
        known = {*options(getattr(callbacks, name)), *NAMES.get(name, {})}
        assert others - {"params", "kwargs", "args"} <= known


def test_the_signature_is_that_of_the_constructor():
    assert options(EarlyStopping)[:2] == ["monitor", "min_delta"]
    assert EarlyStopping.__init__.__module__ == EarlyStopping.__module__
