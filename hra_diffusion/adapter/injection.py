"""Injection of adapters into a model, and their removal."""

import copy
from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.fast_paths import FastPaths
from hra_diffusion.adapter.initial import start_columns
from hra_diffusion.adapter.layer import HRALayer
from hra_diffusion.adapter.layers import wrap
from hra_diffusion.adapter.mixture import ActiveAdapters, blend_together, is_plain, mixture_in
from hra_diffusion.adapter.passes import factor_together
from hra_diffusion.adapter.ranks import check_rank_pattern
from hra_diffusion.adapter.state import AdapterState, check_biases, check_columns, check_magnitudes, sort_state
from hra_diffusion.adapter.targets import find_named, find_targets
from hra_diffusion.adapter.trained_parts import TrainedBiases, TrainedCopy
from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.householder.gram_schmidt import orthonormal_columns
from hra_diffusion.text import shorten


class Injection:
    """The parts of all adapters in a model. Adding and removing an adapter are inverses: base modules stay unchanged.

    Attributes:
        model: the model.
        layers: adapted layers, by name of the replaced module.
        copies: modules with trained copies, by name of the replaced module.
        biases: trained biases, by adapter.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers: dict[str, HRALayer] = {}
        self.copies: dict[str, TrainedCopy] = {}
        self.biases: dict[str, TrainedBiases] = {}
        self._slots: dict[str, list[tuple[nn.Module, str]]] = {}
        self._fast_paths = FastPaths(model)

    def add(
        self,
        adapter: str,
        config: HRAConfig,
        state_dict: Mapping[str, Tensor] | None = None,
        *,
        on_meta: bool = False,
        half: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        """Add an adapter, newly initialized or with given tensors. All checks precede the first change.

        Args:
            adapter: its name.
            config: its settings.
            state_dict: its tensors, by PEFT's names.
            on_meta: create the columns on the meta device.
            half: keep them in half precision where the layer's weight is.
            generator: the source of random columns.

        Raises:
            AdapterFileError: the tensors do not fit the model.
            TargetError: the settings do not fit the model.
            ConfigError: it conflicts with another adapter.
        """
        with self.ejected() as base:
            state = None if state_dict is None else sort_state(base, config, state_dict)
            names = find_targets(base, config) if state is None else list(state.columns)
            trained = find_named(base, config.modules_to_save or ())
            layers = {name: self.layers.get(name) or wrap(name, base.get_submodule(name)) for name in names}
            copies = {name: copy.deepcopy(base.get_submodule(name)) for name in trained}
            _check_disjoint({**self.layers, **layers}, {**self.copies, **copies})
            biases = TrainedBiases(_biases(base, config, names, trained))
            slots = _slots(base, (*names, *trained))
        if state is None:
            check_rank_pattern(config.rank_pattern, layers)
            starts = {
                name: start_columns(layer, config, config.rank_of(name), on_meta, generator)
                for name, layer in layers.items()
            }
        else:
            check_columns(layers, config, state.columns)
            check_magnitudes(layers, config, state.magnitudes)
            check_biases(biases.parameters, config, state.biases)
            starts = {name: (state.columns[name], None) for name in names}
            for name, module in copies.items():
                module.load_state_dict(state.copies[name])
            biases.load(state.biases)
        self._slots |= slots
        for name, (columns, anchor) in starts.items():
            layers[name].columns.put(adapter, columns, anchor=anchor, orthonormal=config.apply_GS, half=half)
            if config.use_magnitude:
                layers[name].magnitudes.put(adapter, state.magnitudes[name] if state else None)
            self._set_submodule(name, layers[name])
        self.layers |= layers
        for name, module in copies.items():
            self.copies[name] = self.copies.get(name) or TrainedCopy(self.model.get_submodule(name))
            self.copies[name].put_copy(adapter, module)
            self._set_submodule(name, self.copies[name])
        self.biases[adapter] = biases
        self._fast_paths.switch((*self.layers, *self.copies))

    def swap(self, adapter: str, config: HRAConfig, state_dict: Mapping[str, Tensor]) -> None:
        """Overwrite an adapter's columns with those of another adapter, of the same or a lower rank.

        Raises:
            AdapterFileError: the tensors do not fit.
        """
        slots = {name: layer for name, layer in self.layers.items() if adapter in layer.columns}
        with self.ejected() as base:
            state = sort_state(base, config, state_dict)
        present = {name: slots[name] for name in state.columns if name in slots}
        check_columns(present, config, state.columns)
        check_magnitudes(present, config, state.magnitudes)
        room = min(layer.columns[adapter].shape[1] for layer in slots.values())
        rank = max((config.rank_of(name) for name in present), default=config.r)
        is_narrow = any(config.rank_of(name) > layer.columns[adapter].shape[1] for name, layer in present.items())
        unknown = [name for name in state.columns if name not in slots]
        trains_base = config.bias != "none" or config.modules_to_save or self.biases[adapter].parameters
        has_magnitude = all(adapter in layer.magnitudes for layer in slots.values())
        if unknown or is_narrow or trains_base or (config.use_magnitude and not has_magnitude):
            raise AdapterFileError(
                f"The adapter cannot be swapped for {adapter!r}: its rank is {rank} of at most {room}, "
                f"{len(unknown)} of its layers are not adapted in the model ({shorten(unknown) or '–'}), and biases, "
                "modules_to_save and magnitudes that the other lacks cannot be swapped. Load it as a separate adapter."
            )
        for name, layer in slots.items():
            columns = state.columns.get(name, torch.zeros(layer.unfolded_size, 0))
            if config.apply_GS and name in state.columns:
                columns = orthonormal_columns(columns.float())
            layer.columns.overwrite(adapter, columns)
            if adapter in layer.magnitudes:
                layer.magnitudes.reload(adapter, state.magnitudes.get(name))

    def reload(self, adapter: str, config: HRAConfig, state_dict: Mapping[str, Tensor]) -> None:
        """Overwrite an adapter's tensors in place with those of a file of the same adapter.

        Raises:
            AdapterFileError: the tensors do not fit; nothing is changed.
        """
        layers = {name: layer for name, layer in self.layers.items() if adapter in layer.columns}
        with self.ejected() as base:
            state = sort_state(base, config, state_dict)
        chains = {name: layer.columns.chain(adapter) for name, layer in layers.items()}
        if different := {
            name
            for name in chains.keys() | state.columns.keys()
            if name not in chains or name not in state.columns or chains[name].shape != state.columns[name].shape
        }:
            raise AdapterFileError(
                f"The file is not of the adapter {adapter!r}: other columns of {shorten(different)}."
            )
        check_magnitudes(layers, config, state.magnitudes)
        check_biases(self.biases[adapter].parameters, config, state.biases)
        if skew := [name for name, layer in layers.items() if not layer.columns.accepts(adapter, state.columns[name])]:
            raise AdapterFileError(f"The file is not of the adapter {adapter!r}: not orthonormal in {shorten(skew)}.")
        for name, layer in layers.items():
            layer.columns.reload(adapter, state.columns[name])
            if config.use_magnitude:
                layer.magnitudes.reload(adapter, state.magnitudes[name])
        for name, values in state.copies.items():
            self.copies[name].copies[adapter].load_state_dict(values)
        self.biases[adapter].load(state.biases)

    def pad(self, adapter: str, rank: int) -> None:
        """Apply Gram–Schmidt to an adapter's columns once and for all, and append zero columns up to `rank`."""
        for layer in self.layers.values():
            if adapter in layer.columns:
                columns = layer.columns.chain(adapter)
                layer.columns.remove(adapter)
                layer.columns.put(adapter, nn.functional.pad(columns, (0, rank - columns.shape[1])))

    def remove(self, adapter: str) -> None:
        """Remove an adapter, and restore modules without any adapter left."""
        self.biases.pop(adapter).activate(False)
        for name, layer in list(self.layers.items()):
            layer.columns.remove(adapter)
            layer.magnitudes.remove(adapter)
            layer.factors.forget()
            if not layer.hra_u:
                self._set_submodule(name, self.layers.pop(name).base_layer)
        for name, wrapper in list(self.copies.items()):
            wrapper.remove_copy(adapter)
            if not wrapper.copies:
                self._set_submodule(name, self.copies.pop(name).base_layer)
        self._fast_paths.switch((*self.layers, *self.copies))

    @contextmanager
    def ejected(self) -> Generator[nn.Module]:
        """Yield the model without its adapters' wrappers and biases within a `with` block."""
        wrappers = {**self.layers, **self.copies}
        trained = [biases for biases in self.biases.values() if biases.active]
        for biases in trained:
            biases.activate(False)
        for name, wrapper in wrappers.items():
            self._set_submodule(name, wrapper.base_layer)
        try:
            yield self.model
        finally:
            for name, wrapper in wrappers.items():
                self._set_submodule(name, wrapper)
            for biases in trained:
                biases.activate(True)

    @contextmanager
    def reseated(self) -> Generator[None]:
        """Let a `with` block replace base modules, as injecting LoRAs does; the wrappers then hold the new ones."""
        wrappers = {**self.layers, **self.copies}
        for name, wrapper in wrappers.items():
            self._set_submodule(name, wrapper.base_layer)
        try:
            yield
        finally:
            for name, wrapper in wrappers.items():
                wrapper.base_layer = self.model.get_submodule(name)
                self._set_submodule(name, wrapper)

    def activate(self, active: ActiveAdapters) -> None:
        """Activate the chains of some adapters, and compute their blends.

        Raises:
            ConfigError: a blend has an adapter of odd rank.
        """
        mixture = active.mixture
        for name, layer in self.layers.items():
            layer.mixture, layer.enabled = mixture_in(mixture, name), active.enabled
            layer.magnitudes.activate(layer.mixture)
            layer.is_blended = not all(is_plain(blend) for blend in layer.mixture)
        layers = self.layers.values()
        stale = [(layer.blends, layer.blends.stale(layer.mixture, layer.mixture)) for layer in layers]
        blend_together((cache, blend) for cache, blends in stale for blend in blends)
        factor_together([layer for layer in self.layers.values() if layer.is_blended], [False])

    def check_copies(self, adapters: Sequence[str]) -> None:
        """Check that at most one of some adapters trains each module whole.

        Raises:
            ConfigError: several do.
        """
        for module, wrapper in self.copies.items():
            if len(both := [name for name in adapters if name in wrapper.copies]) > 1:
                raise ConfigError(
                    "Only one adapter can be set at a time for ModulesToSaveWrapper: "
                    f"{', '.join(map(repr, both))} each train {module!r} whole (modules_to_save)."
                )

    def activate_trained_modules(self, adapters: Sequence[str]) -> None:
        """Activate the trained biases of some adapters, and the first trained copy of each module."""
        for wrapper in self.copies.values():
            wrapper.active = next((name for name in adapters if name in wrapper.copies), None)
        for name, biases in self.biases.items():
            biases.activate(name in adapters)

    def remove_all(self, *, keep_trained: bool) -> None:
        """Remove all adapters; merged weights stay, and active biases and copies with `keep_trained`."""
        for biases in self.biases.values():
            biases.activate(keep_trained and biases.active)
        for name, wrapper in {**self.layers, **self.copies}.items():
            kept = wrapper.active_module if keep_trained and isinstance(wrapper, TrainedCopy) else wrapper.base_layer
            self._set_submodule(name, kept)
        self.layers, self.copies, self.biases, self._slots = {}, {}, {}, {}
        self._fast_paths.switch(())

    def state(self, adapter: str, config: HRAConfig) -> AdapterState:
        """Return an adapter's tensors: columns of a plain chain, magnitudes, biases and copies."""
        layers = {name: layer for name, layer in self.layers.items() if adapter in layer.columns}
        columns = {name: layer.columns.chain(adapter)[:, : config.rank_of(name)] for name, layer in layers.items()}
        magnitudes: dict[str, Tensor] = {
            name: layer.magnitudes[adapter] for name, layer in layers.items() if config.use_magnitude
        }
        copies = {
            name: wrapper.copies[adapter].state_dict()
            for name, wrapper in self.copies.items()
            if adapter in wrapper.copies
        }
        return AdapterState(columns, magnitudes, self.biases[adapter].trained(), copies)

    def trained_parameters(self, adapter: str) -> Generator[nn.Parameter]:
        """Yield the trainable parameters of an adapter."""
        for layer in self.layers.values():
            if adapter in layer.columns:
                yield layer.columns[adapter]
            if adapter in layer.magnitudes:
                yield layer.magnitudes[adapter]
        for wrapper in self.copies.values():
            if adapter in wrapper.copies:
                yield from wrapper.copies[adapter].parameters()
        yield from self.biases[adapter].parameters.values()

    def _set_submodule(self, name: str, module: nn.Module) -> None:
        """Replace the submodule of a name, and of its other names."""
        for parent, child in self._slots[name]:
            setattr(parent, child, module)


def _slots(base: nn.Module, names: Iterable[str]) -> dict[str, list[tuple[nn.Module, str]]]:
    """Return every parent, with the attribute's name, that holds each named module."""
    slots: defaultdict[nn.Module, list[tuple[nn.Module, str]]] = defaultdict(list)
    for parent in base.modules():
        for child, module in parent._modules.items():  # pyright: ignore[reportPrivateUsage] (also modules under two names)
            if module is not None:
                slots[module].append((parent, child))
    return {name: slots[base.get_submodule(name)] for name in names}


def _check_disjoint(layers: Iterable[str], copies: Iterable[str]) -> None:
    """Check that modules_to_save contain no adapted module."""
    names = list(layers)
    for copied in copies:
        if adapted := [name for name in names if name == copied or name.startswith(f"{copied}.")]:
            raise ConfigError(f"{adapted[0]!r} cannot be adapted and trained whole: modules_to_save has {copied!r}.")


def _biases(
    base: nn.Module, config: HRAConfig, adapted: Iterable[str], trained: Iterable[str]
) -> dict[str, nn.Parameter]:
    """Return the biases that an adapter trains in place, by name, outside of modules_to_save."""
    within = tuple(f"{name}." for name in trained)
    biases = {name: p for name, p in base.named_parameters() if name.split(".")[-1] == "bias"}
    wanted = {"all": biases.keys(), "hra_only": {f"{name}.bias" for name in adapted}, "none": set[str]()}[config.bias]
    return {name: p for name, p in biases.items() if name in wanted and not name.startswith(within)}
