"""The initialisers by name, and what follows from the choice of one.

To add one to the package, write its file, and its name in `unlora.settings.names`. Your own code adds one with
`register_initialiser`, without changing the package (docs/how-to/own-initialiser.md).
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
    """Make an initialiser known by a name in this process: to `--init`, to grids and to every command.

    Args:
        name: the value of `init` that chooses it.
        initialiser: how the adapter starts.

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
        retain: the same over the retain set.
        method: how moments become the Fisher information F of a weight: "vila" for moments of LoRA factors, "fila"
            for moments of whole weights, or a registered initialiser with a `fisher` of its own.
        smoothing: "relative" takes ε as a fraction of the layer's mean retain Fisher information, so that the result
            does not depend on the scale of the loss. "absolute" takes ε as it is. "per_token" does so too, after
            dividing both informations once more by their number of tokens, as VILA's released code does.
        epsilon: ε; by default 0.1 for "relative" and 1e-5 for the others.
        centred: whether F is made from the variance of the gradients or from their mean square; by default the
            method's own choice (VILA: variance, FILA: mean square).
        normalised: divide each layer's importance by its mean row sum. The row weights of `weighted_low_rank` then
            have mean square 1, so that A₀ and B₀ start about equally large whatever the scale of the importance.
        rows: return the sums over each row. Only one [out, in] matrix is then in memory at a time.

    Returns:
        {module name: [out, in]}, or {module name: [out]} with `rows`, in float32.

    Raises:
        InputError: an unknown method or smoothing, moments that the method cannot use, moments of different
            parameters, or an ε that is not positive and finite.

    Source: FILA (arXiv 2408.06621) for the ratio, VILA (arXiv 2508.21300) for the information of factors.
    """
    methods = {name: initialiser for name, initialiser in INITIALISERS.items() if initialiser.fisher}
    if method not in methods:
        raise InputError(unknown_name("method", method, methods))
    fisher, centred = methods[method].fisher, methods[method].centred if centred is None else centred
    assert fisher is not None
    return importance_ratio(fisher, forget, retain, centred, smoothing, epsilon, normalised, rows)


def initialiser_problems(config: ImportanceConfig) -> list[Problem]:
    """Return what is wrong with settings of the chosen initialiser, if it exists, which the settings check."""
    if config.init in INITIALISERS and config.importance_file and not INITIALISERS[config.init].uses_data:
        reason = f"{config.init!r} does not measure an importance"
        return [Problem("importance_file", config.importance_file, reason, "remove it")]
    return []


def unread_settings(config: ImportanceConfig) -> list[str]:
    """Return the settings that the user changed and the initialiser does not read.

    The seed is not among them, because it is often set for all initialisers of a grid.
    """
    read = {"init", "importance_seed", *INITIALISERS[config.init].settings}
    names = sorted(field.name for field in fields(config) if field.name not in read)
    return [name for name in names if getattr(config, name) != getattr(type(config), name)]


def estimate_settings(config: ImportanceConfig) -> dict[str, object]:
    """Return the settings that change what is measured, as they enter the key of the importance file."""
    # The file holds the importance as it was measured, so that it serves runs with and without normalisation.
    no_effect = {"importance_file", "normalised"}
    if config.moments_per == "example":  # moments of single examples do not depend on how these are batched
        no_effect |= {"importance_batch_size", "forget_passes"}
    names = [name for name in ("init", *INITIALISERS[config.init].settings) if name not in no_effect]
    # The code of an own initialiser decides too, as far as it is known.
    code = hashes_of({"initialiser": config.init})
    return {name: getattr(config, name) for name in names} | ({"plugin": code} if code else {})
