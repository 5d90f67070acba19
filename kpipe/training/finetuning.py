"""Rules of fine-tuning: how fast each layer is trained, and from which step on.

Layers that come with weights are trained slower than new ones, or later, or not at all (Yosinski et al. 2014, "How
transferable are features in deep neural networks?").
"""

import itertools
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from kpipe.catalog.rows import OneOf
from kpipe.catalog.training import LayerOptions, ReusedLayers
from kpipe.catalog.wording import show
from kpipe.console import counted
from kpipe.errors import ConfigError, did_you_mean

_WHERE = "training.layers"


@dataclass(frozen=True)
class LayerRule:
    """How a layer is trained."""

    rate: float = 1.0
    """Factor of the learning rate."""
    weight_decay: float | None = None
    """Value of the weight decay; None: the optimizer's."""
    thaws: float = 0
    """The step from which it is trained; infinity: never."""

    def describe(self) -> str:
        """Return the rule in words; empty for a layer that is trained like any other."""
        if self.thaws == math.inf:
            return "frozen"
        words = [f"{self.rate:g} x the learning rate"] if self.rate != 1 else []
        words += [] if self.weight_decay is None else [f"weight decay {self.weight_decay:g}"]
        if not self.thaws:
            return ", ".join(words)
        return f"frozen for {counted(int(self.thaws), 'step')}" + (f", then {', '.join(words)}" if words else "")


def describe_rules(rules: Mapping[str, LayerRule]) -> str:
    """Return the rules of all layers in words, neighbors with the same rule together; empty where all are alike."""
    if len(set(rules.values())) == 1 and not next(iter(rules.values())).describe():
        return ""
    parts = []
    for text, group in itertools.groupby(rules, key=lambda name: rules[name].describe() or "trained"):
        first, *others = group
        parts.append(f"{first}{f' to {others[-1]}' if others else ''}: {text}")
    return "; ".join(parts)


def make_layer_rules(
    layers: Sequence[str],
    *,
    reused: Collection[str] = (),
    reused_layers: ReusedLayers | None = None,
    entries: Sequence[LayerOptions] = (),
    steps_of: Callable[[OneOf], int],
    total_steps: int,
) -> dict[str, LayerRule]:
    """Return how each layer is trained.

    Args:
        layers: names of the layers with weights that can be trained.
        reused: names of those whose weights come from elsewhere.
        reused_layers: how these are trained; None: as all others.
        entries: how single layers are trained. Of each layer the first entry that matches counts, over `reused_layers`.
        steps_of: converts a duration into steps.
        total_steps: steps of the whole training.

    Raises:
        ConfigError: a pattern is no regular expression or matches no layer, an entry says how layers are trained that
            keep their weights, a layer would thaw after the end of the training, or no layer is trained from the first
            step on.
    """
    _check_entries(entries, layers)

    def thaw_of(where: str, frozen: str | OneOf) -> float:
        if isinstance(frozen, str):
            return {"none": 0, "all": math.inf}[frozen]
        steps = steps_of(frozen)
        if steps >= total_steps:
            raise ConfigError(
                f"{where}.frozen: expected a length shorter than the training ({counted(total_steps, 'step')}), got "
                f"{counted(steps, 'step')}; `all` freezes layers for good"
            )
        return steps

    def rule_of(name: str) -> LayerRule:
        rule = LayerRule()
        if reused_layers and name in reused:
            rule = LayerRule(reused_layers.rate, thaws=thaw_of("training.reused_layers", reused_layers.frozen))
        for index, entry in enumerate(entries):
            if re.fullmatch(entry.match, name):
                return _override(rule, entry, name, f"{_WHERE}.{index}", thaw_of)
        return rule

    rules = {name: rule_of(name) for name in layers}
    if all(rule.thaws > 0 for rule in rules.values()):
        problem = "expected a layer that is trained from the first step on, but all are frozen"
        if entries:
            raise ConfigError(f"training: {problem}")
        # The weights are of the same network and the same classes.
        raise ConfigError(
            f"training.reused_layers: {problem} and none is new. Leave frozen out, or train the last layer: "
            f"training.layers=[{{match: {layers[-1]}, frozen: none}}]"
        )
    return rules


def _check_entries(entries: Sequence[LayerOptions], layers: Sequence[str]) -> None:
    for index, entry in enumerate(entries):
        for option, message in entry.conflicts():
            raise ConfigError(f"{_WHERE}.{index}.{option}: {message}")
        if not any(re.fullmatch(entry.match, name) for name in layers):
            raise ConfigError(
                f"{_WHERE}.{index}.match: expected a pattern that matches the name of a layer, got {show(entry.match)}"
                f"{did_you_mean(entry.match, layers)}"
            )


def _override(
    rule: LayerRule, entry: LayerOptions, name: str, where: str, thaw_of: Callable[[str, str | OneOf], float]
) -> LayerRule:
    """Return the rule of a layer that an entry of `training.layers` matches, from that of `reused_layers`."""
    if entry.frozen is None and rule.thaws == math.inf:
        raise ConfigError(
            f"{where}: says how {name} is trained, but training.reused_layers keeps its weights (frozen: all). Add "
            "frozen: none, or a length such as {epochs: 3}"
        )
    return LayerRule(
        rate=rule.rate if entry.rate is None else entry.rate,
        weight_decay=entry.weight_decay,
        thaws=rule.thaws if entry.frozen is None else thaw_of(where, entry.frozen),
    )
