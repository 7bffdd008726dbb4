"""The states of random generators: those of a process (of Python, numpy, torch and, if the program
has imported them, TensorFlow and Keras), or one alone.

The large tables of Python and numpy are arrays, so that they do not fill the structure of a
checkpoint; see section 12 of docs/reference/format.md. They are torch tensors of signed integers,
so that torch.load reads an exported .pt without running code. Earlier versions stored numpy arrays.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import torch

from ckptstore.arrays.keras import Variable, value_of
from ckptstore.errors import InvalidInputError

_ACCELERATORS = ("cuda", "xpu", "mps")
_NUMPY_FIELDS = ("kind", "keys", "position", "has_gauss", "gauss")


class RandomState:
    """The global generators of a process, those of torch on all devices, as a stateful object.

    Those of TensorFlow and Keras are among them if the program has imported these.

    Args:
        accelerators: Whether those of accelerators are among them.
    """

    def __init__(self, *, accelerators: bool = True) -> None:
        self._accelerators = _ACCELERATORS if accelerators else ()

    def state_dict(self) -> dict[str, Any]:
        """Copies of the states of all generators."""
        state = {"python": _python(random.getstate()), "numpy": _numpy(np.random.get_state())}
        state["torch"] = {"cpu": torch.get_rng_state()}
        for name in self._accelerators:
            module = getattr(torch, name)
            if module.is_available():
                state["torch"][name] = [
                    module.get_rng_state(*_device(name, number))
                    for number in range(module.device_count())
                ]
        return state | {name: found for name, of in _OTHERS.items() if (found := of.state())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the generators. Devices that this machine or the state lacks are skipped."""
        try:
            random.setstate(_to_python(state["python"]))
            np.random.set_state(_to_numpy(state["numpy"]))
            torch.set_rng_state(state["torch"]["cpu"])
            for name in self._accelerators:
                module = getattr(torch, name)
                count = module.device_count() if module.is_available() else 0
                for number, saved in enumerate(state["torch"].get(name, ())[:count]):
                    module.set_rng_state(saved, *_device(name, number))
            for name, generators in _OTHERS.items():
                if name in state:
                    generators.set(state[name])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InvalidInputError(
                f"The checkpoint's random state is not one that this version saves: {error!r}."
            ) from error


class _TensorFlow:
    """The global generator of TensorFlow, and what its operations without a seed draw from.

    The latter exists once the program has set a seed. Operations inside a tf.function, which have
    states of their own, are not included.
    """

    def state(self) -> dict[str, Any]:
        """The states; empty where there are none."""
        found: dict[str, Any] = {}
        if (generator := self._generator) is not None:
            found["generator"] = _with_tensors(generator.state.numpy())
            found["algorithm"] = int(generator.algorithm)
        if (random := getattr(self._context, "_rng", None)) is not None:
            found["seed"] = self._context._seed  # noqa: SLF001 - it can only be set elsewhere
            found["operations"] = _python(random.getstate())
        return found

    def set(self, state: dict[str, Any]) -> None:
        """Set what the program has."""
        tf = sys.modules.get("tensorflow")
        if tf is None:
            return
        if "generator" in state:
            words = state["generator"].numpy()
            if self._generator is not None and self._generator.state.shape == words.shape:
                self._generator.state.assign(words)  # functions of the program may use it
            else:
                made = tf.random.Generator.from_state(words, state["algorithm"])
                tf.random.set_global_generator(made)
        if "operations" in state and not self._is_at(state):
            tf.random.set_seed(state["seed"])  # operations that have drawn begin again
            self._context._rng.setstate(_to_python(state["operations"]))  # noqa: SLF001

    def _is_at(self, state: dict[str, Any]) -> bool:
        """Whether operations draw next what they did when the state was saved."""
        random: Any = getattr(self._context, "_rng", None)
        is_seeded = random is not None and self._context._seed == state["seed"]  # noqa: SLF001
        return bool(is_seeded and random.getstate() == _to_python(state["operations"]))

    @property
    def _generator(self) -> Any:
        home = sys.modules.get("tensorflow.python.ops.stateful_random_ops")
        return getattr(home, "global_generator", None)

    @property
    def _context(self) -> Any:
        home: Any = sys.modules.get("tensorflow.python.eager.context")
        return None if home is None else home.context()


class _Keras:
    """The generator of the functions of keras.random that are given no seed."""

    def state(self) -> dict[str, Any]:
        """The state; empty before the first use."""
        home: Any = sys.modules.get("keras.src.backend.common.global_state")
        generator = None if home is None else home.get_global_attribute("global_seed_generator")
        if generator is None:
            return {}
        return {"seed": [int(word) for word in value_of(generator.state)]}

    def set(self, state: dict[str, Any]) -> None:
        """Set the generator if the program has imported Keras."""
        home: Any = sys.modules.get("keras.src.random.seed_generator")
        if home is not None:
            Variable(home.global_seed_generator().state).load_state_dict(np.array(state["seed"]))


_OTHERS: dict[str, _TensorFlow | _Keras] = {"tensorflow": _TensorFlow(), "keras": _Keras()}


class Generator:
    """A single generator of Python, numpy or torch as a stateful object."""

    kinds = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)

    def __init__(self, generator: Any) -> None:
        self.generator = generator

    def state_dict(self) -> dict[str, Any]:
        """A copy of the generator's state."""
        generator = self.generator
        if isinstance(generator, random.Random):
            return {"python": _python(generator.getstate())}
        if isinstance(generator, np.random.RandomState):
            return {"numpy": _numpy(generator.get_state())}
        if isinstance(generator, np.random.Generator):
            return {"bits": _with_tensors(generator.bit_generator.state)}
        return {"torch": generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the generator's state."""
        generator = self.generator
        if isinstance(generator, random.Random):
            generator.setstate(_to_python(state["python"]))
        elif isinstance(generator, np.random.RandomState):
            generator.set_state(_to_numpy(state["numpy"]))
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = _with_words(state["bits"])
        else:
            generator.set_state(state["torch"])


def _device(accelerator: str, number: int) -> tuple[int, ...]:
    """The arguments that name a device. Those of mps take none: there is one."""
    return () if accelerator == "mps" else (number,)


def _python(state: Any) -> dict[str, Any]:
    """The state of a Mersenne Twister, its 625 words as an array."""
    version, words, gauss = state
    words = _with_tensors(np.array(words, np.uint32))
    return {"version": version, "words": words, "gauss": gauss}


def _to_python(state: dict[str, Any]) -> Any:
    return state["version"], tuple(_with_words(state["words"]).tolist()), state["gauss"]


def _numpy(state: Any) -> dict[str, Any]:
    return dict(zip(_NUMPY_FIELDS, map(_with_tensors, state), strict=True))


def _to_numpy(state: dict[str, Any]) -> Any:
    return tuple(_with_words(state[name]) for name in _NUMPY_FIELDS)


def _with_tensors(state: Any) -> Any:
    """A copy of a state, with a tensor of signed integers for each array of unsigned words."""
    if isinstance(state, dict):
        return {name: _with_tensors(value) for name, value in state.items()}
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.view(state.dtype.str.replace("u", "i")).copy())
    return state


def _with_words(state: Any) -> Any:
    """A copy of a state, with an array of unsigned words for each tensor."""
    if isinstance(state, dict):
        return {name: _with_words(value) for name, value in state.items()}
    if isinstance(state, torch.Tensor):
        words = state.numpy()
        return words.view(words.dtype.str.replace("i", "u")).copy()
    return state
