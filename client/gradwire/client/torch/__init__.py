"""gradwire for PyTorch: an optimizer that lives on a server, and exchange of state with ``torch.optim.Adam``.

Example::

    from gradwire.client import TorchAdam
    from gradwire.client.torch import RemoteOptimizer

    optimizer = RemoteOptimizer(model.parameters(), TorchAdam(lr=1e-3), target="host:50051", run="mnist")

This is the only part of the client that needs torch: ``pip install 'gradwire[torch]'``.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as _error:
    raise ImportError("gradwire.client.torch needs torch; pip install 'gradwire[torch]' brings it") from _error

from gradwire.client.torch.diloco import DiLoCo
from gradwire.client.torch.optimizer import RemoteOptimizer
from gradwire.client.torch.state import load_state_dict, state_dict

__all__ = ["DiLoCo", "RemoteOptimizer", "load_state_dict", "state_dict"]
