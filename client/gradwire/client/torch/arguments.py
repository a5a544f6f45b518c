"""What the constructor of an optimizer is given, checked."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from gradwire.client.connection import Server
from gradwire.client.optimizers.adam import Adam, TorchAdam
from gradwire.client.optimizers.optimizer import Optimizer
from gradwire.client.torch.words import words_for
from gradwire.client.workers.shared import Shared
from gradwire.wire.tls import TLS


def preset_of(optimizer: Any, maximize: bool | None, options: dict[str, Any]) -> Optimizer:
    """The preset with those of ``options`` that are its hyperparameters, which are taken out of them. Raises TypeError,
    ValueError."""
    preset = TorchAdam() if optimizer is None else optimizer
    if not (isinstance(preset, Adam) or words_for(preset)):
        raise TypeError(
            f"optimizer is {preset!r}; expected a preset such as TorchAdam(lr=1e-3), of Adam, SGD or Adagrad"
        )
    hyperparameters = {field.name for field in fields(preset)}
    changes = {name: options.pop(name) for name in list(options) if name in hyperparameters}
    return preset.replace(changes if maximize is None else {**changes, "maximize": maximize})


def check_place(run: Any, target: Any, tls: Any, token: Any, overlap: Any) -> None:
    """Raises TypeError."""
    if not isinstance(run, str):
        raise TypeError(f"run is {run!r}; expected the name of a run")
    if not (target is None or isinstance(target, (str, Server))):
        raise TypeError(f"target is {target!r}; expected host:port, unix:PATH, 'embedded' or a Server")
    if not (tls is None or isinstance(tls, TLS)):
        raise TypeError(f"tls is {tls!r}; expected TLS(ca=...)")
    if not (token is None or isinstance(token, str)):
        raise TypeError(f"token is of type {type(token).__name__}; expected a string")
    for name, value in (("tls", tls), ("token", token)):
        if value is not None and isinstance(target, Server):
            raise TypeError(f"{name} is of no use with a Server, which is connected already; expected it in connect()")
    if not isinstance(overlap, bool):
        raise TypeError(f"overlap is {overlap!r}; expected True or False")


def checked_on_existing(on_existing: Any, workers: Any) -> str:
    """What becomes of a run of the same name. Raises ValueError, TypeError."""
    if not (workers is None or isinstance(workers, Shared)):
        raise TypeError(f"workers is {workers!r}; expected Shared(...), or None for one worker at a time")
    if on_existing is None:
        return "error" if workers is None else "resume"
    if on_existing == "replace" and workers is not None:
        raise ValueError(
            "on_existing is 'replace' with workers=Shared(...): each of them would put a run of its own in the "
            "place of the others'; expected 'resume' or 'error', and Server.delete_run for one that is of no more use"
        )
    found: str = on_existing  # `create_run` refuses others
    return found
