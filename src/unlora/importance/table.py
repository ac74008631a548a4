"""The initialisers by name, the registration of further ones, and the settings that each of them reads.

To add an initialiser to the package, write its module and list its name in `unlora.settings.names`. Outside the
package, add one with `register_initialiser` (docs/how-to/own-initialiser.md).
"""

from __future__ import annotations

from dataclasses import fields

from torch import Tensor

from unlora.common.errors import InputError, Problem, raise_if, unknown_name
from unlora.common.plugins import hashes_of, register
from unlora.importance.initialiser import Initialiser
from unlora.importance.moments import Moments
from unlora.importance.ratio import importance_ratio
from unlora.settings import ImportanceConfig, names
from unlora.settings.names import Table

INITIALISERS: Table[Initialiser] = names.INITIALISERS


def register_initialiser(name: str, initialiser: Initialiser) -> None:
    """Register an initialiser under a name, for `--init`, grids and all commands in this process.

    Args:
        name: the value of `init` that selects it.
        initialiser: the initialiser.

    Raises:
        InputError: the name is taken, or `reads` names a setting that `ImportanceConfig` does not have.
    """
    known = [field.name for field in fields(ImportanceConfig)]
    raise_if(unknown_name("reads", setting, known) for setting in initialiser.reads if setting not in known)
    register("initialiser", INITIALISERS, name, initialiser)


def relative_importance(
    forget: Moments,
    retain: Moments,
    method: str = "vila",
    *,
    smoothing: str = "relative",
    epsilon: float | None = None,
    centred: bool | None = None,
    normalised: bool = False,
    rows: bool = False,
) -> dict[str, Tensor]:
    """Return the importance F_forget / (ε + F_retain) of each adapted weight.

    Args:
        forget: gradient moments over the forget set.
        retain: gradient moments over the retain set.
        method: how the Fisher information F of a weight is computed: "vila" from moments of LoRA factors, "fila" from
            moments of whole weights, or the name of a registered initialiser with a `fisher` function.
        smoothing: "relative" takes ε as a fraction of the layer's mean retain Fisher information, so that the result
            does not depend on the scale of the loss. "absolute" uses ε as it is. "per_token" does so too, after
            dividing both F once more by their number of tokens, as VILA's released code does.
        epsilon: ε; by default 0.1 for "relative" and 1e-5 for the others.
        centred: whether F is computed from the variance of the gradients instead of their mean square; by default the
            method's own choice (VILA: variance, FILA: mean square).
        normalised: divide each layer's importance by its mean row sum. The row weights of `weighted_low_rank` then
            have mean square 1, so that A₀ and B₀ have about the same magnitude at any scale of the importance.
        rows: return the sums over each row, so that only one [out, in] matrix is in memory at a time.

    Returns:
        {module name: [out, in]}, or {module name: [out]} with `rows`, in float32.

    Raises:
        InputError: an unknown method or smoothing, moments that the method cannot use, moments of different
            parameters, or an ε that is not positive and finite.

    Source: FILA (arXiv 2408.06621) for the ratio, VILA (arXiv 2508.21300) for F from moments of LoRA factors.
    """
    methods = {name: initialiser for name, initialiser in INITIALISERS.items() if initialiser.fisher}
    if method not in methods:
        raise InputError(unknown_name("method", method, methods))
    fisher, centred = methods[method].fisher, methods[method].centred if centred is None else centred
    assert fisher is not None
    return importance_ratio(fisher, forget, retain, centred, smoothing, epsilon, normalised, rows)


def initialiser_problems(config: ImportanceConfig) -> list[Problem]:
    """Return the problems of settings that do not suit the initialiser. An unknown name is reported elsewhere."""
    if config.init in INITIALISERS and config.importance_file and not INITIALISERS[config.init].uses_data:
        reason = f"{config.init!r} does not measure an importance"
        return [Problem("importance_file", config.importance_file, reason, "remove it")]
    return []


def unread_settings(config: ImportanceConfig) -> list[str]:
    """Return the settings that the user changed although the initialiser does not read them.

    The seed is not reported, because it is often set for all initialisers of a grid.
    """
    read = {"init", "importance_seed", *INITIALISERS[config.init].settings}
    names = sorted(field.name for field in fields(config) if field.name not in read)
    return [name for name in names if getattr(config, name) != getattr(type(config), name)]


def estimate_settings(config: ImportanceConfig) -> dict[str, object]:
    """Return the settings that affect the measurement, which are part of the key of an importance file."""
    # The file contains the importance before normalisation, so that runs with and without it can share the file.
    no_effect = {"importance_file", "normalised"}
    if config.moments_per == "example":  # moments of single examples do not depend on how these are batched
        no_effect |= {"importance_batch_size", "forget_passes"}
    names = [name for name in ("init", *INITIALISERS[config.init].settings) if name not in no_effect]
    # The result of a registered initialiser also depends on its code, which is hashed if it is a plugin.
    code = hashes_of({"initialiser": config.init})
    return {name: getattr(config, name) for name in names} | ({"plugin": code} if code else {})
