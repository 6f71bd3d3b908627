"""A backend for Ray Train that leaves the process group to the training function.

Ray's controller imports this file, so it imports as little as possible.
"""

from ray.train import BackendConfig
from ray.train.torch import TorchConfig


class NoBackend(TorchConfig):
    """A TorchConfig whose workers create the process group themselves: see entry.py.

    Ray's own backend creates it before a worker can choose its network interface, or see the
    devices of the other workers on its node, and after a loss it waits half a minute for dead ones.
    """

    backend_cls = BackendConfig.backend_cls
    train_func_context = BackendConfig.train_func_context
