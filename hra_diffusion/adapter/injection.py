"""Adapters in a model: where their parts are, how these get in and out, and what they start with."""

import copy
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.layer import HRALayer
from hra_diffusion.adapter.layers import wrap
from hra_diffusion.adapter.mixture import Acting, blend_together
from hra_diffusion.adapter.state import AdapterState, check_biases, check_columns, sort_state
from hra_diffusion.adapter.targets import find_named, find_targets
from hra_diffusion.adapter.trained_parts import TrainedBiases, TrainedCopy
from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.householder.gram_schmidt import orthonormal_columns
from hra_diffusion.householder.start import paired_columns, random_columns
from hra_diffusion.text import shorten


class Injection:
    """The parts of adapters in a model. Putting in and taking out are inverses: base modules are kept as they are.

    Attributes:
        model: the model they are in.
        layers: adapted layers, by the name of the module each stands for.
        copies: modules with trained copies, by the name of the module each stands for.
        biases: trained biases, by adapter.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers: dict[str, HRALayer] = {}
        self.copies: dict[str, TrainedCopy] = {}
        self.biases: dict[str, TrainedBiases] = {}
        self._homes: dict[str, nn.Module] = {}

    def add(
        self,
        adapter: str,
        config: HRAConfig,
        state_dict: Mapping[str, Tensor] | None = None,
        *,
        on_meta: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        """Put an adapter in: at its start, or with the given tensors. Everything is checked before the first change.

        Raises:
            AdapterFileError: the tensors do not fit the model.
            TargetError: the settings do not fit the model.
            ConfigError: it clashes with another adapter.
        """
        with self.ejected() as base:
            state = None if state_dict is None else sort_state(base, config, state_dict)
            names = find_targets(base, config) if state is None else list(state.columns)
            trained = find_named(base, config.modules_to_save or ())
            layers = {name: self.layers.get(name) or wrap(name, base.get_submodule(name)) for name in names}
            copies = {name: copy.deepcopy(base.get_submodule(name)) for name in trained}
            _check_apart({**self.layers, **layers}, {**self.copies, **copies})
            biases = TrainedBiases(_biases(base, config, names, trained))
        if state is None:
            starts = {name: start_columns(layer, config, on_meta, generator) for name, layer in layers.items()}
        else:
            check_columns(layers, config, state.columns)
            check_biases(biases.parameters, config, state.biases)
            starts = {name: (state.columns[name], None) for name in names}
            for name, module in copies.items():
                module.load_state_dict(state.copies[name])
            biases.load(state.biases)
        for name, (columns, anchor) in starts.items():
            layers[name].put_adapter(adapter, columns, anchor=anchor, orthonormal=config.apply_GS)
            self._place(name, layers[name])
        self.layers |= layers
        for name, module in copies.items():
            self.copies[name] = self.copies.get(name) or TrainedCopy(self.model.get_submodule(name))
            self.copies[name].put_copy(adapter, module)
            self._place(name, self.copies[name])
        self.biases[adapter] = biases

    def swap(self, adapter: str, config: HRAConfig, state_dict: Mapping[str, Tensor]) -> None:
        """Overwrite an adapter's columns with another's, of the same or a lower rank.

        Raises:
            AdapterFileError: they do not fit.
        """
        slots = {name: layer for name, layer in self.layers.items() if layer.has(adapter)}
        with self.ejected() as base:
            state = sort_state(base, config, state_dict)
        check_columns({name: slots[name] for name in state.columns if name in slots}, config, state.columns)
        room = min(layer.own_columns(adapter).shape[1] for layer in slots.values())
        unplaced = [name for name in state.columns if name not in slots]
        more = config.bias != "none" or config.modules_to_save or self.biases[adapter].parameters
        if unplaced or config.r > room or more:
            raise AdapterFileError(
                f"The adapter cannot be swapped for {adapter!r}: its rank is {config.r} of at most {room}, "
                f"{len(unplaced)} of its layers are not adapted here ({shorten(unplaced) or '–'}), and biases or "
                "modules trained whole cannot be swapped. Load it as an adapter of its own."
            )
        for name, layer in slots.items():
            columns = state.columns.get(name, torch.zeros(layer.unfolded_size, 0))
            if config.apply_GS and name in state.columns:
                columns = orthonormal_columns(columns.float())
            layer.overwrite_adapter(adapter, columns)

    def pad(self, adapter: str, rank: int) -> None:
        """Make an adapter's chains plain, and fill them up to `rank` columns with identities."""
        for layer in self.layers.values():
            if layer.has(adapter):
                columns = layer.chain_columns(adapter)
                layer.drop_adapter(adapter)
                layer.put_adapter(adapter, nn.functional.pad(columns, (0, rank - columns.shape[1])))

    def drop(self, adapter: str) -> None:
        """Take an adapter out; modules that no adapter is left in are put back."""
        self.biases.pop(adapter).act(False)
        for name, layer in list(self.layers.items()):
            layer.drop_adapter(adapter)
            if not layer.hra_u:
                self._place(name, self.layers.pop(name).base_layer)
        for name, wrapper in list(self.copies.items()):
            wrapper.drop_copy(adapter)
            if not wrapper.copies:
                self._place(name, self.copies.pop(name).base_layer)

    @contextmanager
    def ejected(self) -> Generator[nn.Module]:
        """Give the model without its adapters' wrappers and biases within a `with` block."""
        wrappers = {**self.layers, **self.copies}
        trained = [biases for biases in self.biases.values() if biases.acting]
        for biases in trained:
            biases.act(False)
        for name, wrapper in wrappers.items():
            self._place(name, wrapper.base_layer)
        try:
            yield self.model
        finally:
            for name, wrapper in wrappers.items():
                self._place(name, wrapper)
            for biases in trained:
                biases.act(True)

    def act(self, acting: Acting) -> None:
        """Let adapters' reflections act, and compute the blends that takes.

        Raises:
            ConfigError: a blend cannot be had.
        """
        for layer in self.layers.values():
            layer.mixture, layer.enabled = acting.mixture, acting.enabled
        blend_together((layer, blend) for layer in self.layers.values() for blend in layer.stale(layer.blends()))

    def answer(self, adapters: Sequence[str]) -> None:
        """Let the biases of some adapters act, and the modules that they train whole, of the first that has a copy."""
        for wrapper in self.copies.values():
            wrapper.acting = next((name for name in adapters if name in wrapper.copies), None)
        for name, biases in self.biases.items():
            biases.act(name in adapters)

    def remove(self, *, keep_trained: bool) -> None:
        """Take all adapters out, but leave weights as they are; so, too, trained parts if they are to be kept."""
        for biases in self.biases.values():
            biases.act(keep_trained and biases.acting)
        for name, wrapper in {**self.layers, **self.copies}.items():
            kept = wrapper.answering if keep_trained and isinstance(wrapper, TrainedCopy) else wrapper.base_layer
            self._place(name, kept)
        self.layers, self.copies, self.biases, self._homes = {}, {}, {}, {}

    def state(self, adapter: str, config: HRAConfig) -> AdapterState:
        """Return an adapter's tensors as those of a plain chain of `config.r` columns."""
        columns = {
            name: layer.chain_columns(adapter)[:, : config.r]
            for name, layer in self.layers.items()
            if layer.has(adapter)
        }
        copies = {n: each.copies[adapter].state_dict() for n, each in self.copies.items() if adapter in each.copies}
        return AdapterState(columns, self.biases[adapter].trained(), copies)

    def trained_parameters(self, adapter: str) -> Generator[nn.Parameter]:
        """Parameters that training an adapter changes."""
        for layer in self.layers.values():
            if layer.has(adapter):
                yield layer.own_columns(adapter)
        for wrapper in self.copies.values():
            if adapter in wrapper.copies:
                yield from wrapper.copies[adapter].parameters()
        yield from self.biases[adapter].parameters.values()

    def _place(self, name: str, module: nn.Module) -> None:
        """Put a module in the place of that name; its parent is looked up only once, for models are deep."""
        parent, _, child = name.rpartition(".")
        if name not in self._homes:
            self._homes[name] = self.model.get_submodule(parent)
        setattr(self._homes[name], child, module)


def start_columns(
    layer: HRALayer, config: HRAConfig, on_meta: bool, generator: torch.Generator | None
) -> tuple[Tensor, Tensor | None]:
    """Columns an adapter starts a layer with, and their anchor: together the identity, unless r is odd.

    Raises:
        ConfigError: more columns are to be orthogonal than there are dimensions.
    """
    d, r = layer.unfolded_size, config.r
    if config.apply_GS and r > d:
        raise ConfigError(f"At most {d} columns can be orthogonal in a layer of {d} inputs; apply_GS has r = {r}.")
    anchored = config.apply_GS and config.init_weights
    if on_meta or layer.base_device.type == "meta":
        columns = torch.empty(d, r, device="meta")
        return columns, torch.empty_like(columns) if anchored else None
    start = paired_columns if config.init_weights and not config.apply_GS else random_columns
    columns = start(d, r, generator=generator)
    return columns, orthonormal_columns(columns) if anchored else None


def _check_apart(layers: Iterable[str], copies: Iterable[str]) -> None:
    """Check that no module is both adapted and, itself or within another, trained whole."""
    names = list(layers)
    for copied in copies:
        if clash := [name for name in names if name == copied or name.startswith(f"{copied}.")]:
            raise ConfigError(f"{clash[0]!r} cannot be adapted while an adapter trains {copied!r} whole.")


def _biases(
    base: nn.Module, config: HRAConfig, adapted: Iterable[str], trained: Iterable[str]
) -> dict[str, nn.Parameter]:
    """Biases that an adapter trains where they are, by name: not those of modules that it trains whole."""
    within = tuple(f"{name}." for name in trained)
    found = {name: p for name, p in base.named_parameters() if name.split(".")[-1] == "bias"}
    wanted = {"all": found.keys(), "hra_only": {f"{name}.bias" for name in adapted}, "none": set[str]()}[config.bias]
    return {name: p for name, p in found.items() if name in wanted and not name.startswith(within)}
