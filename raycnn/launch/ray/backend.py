"""How Ray sets up torch in a job's workers: not at all, for they do it in the training function.

Ray's controller imports this file, so that it imports no more than it must.
"""

from ray.train import BackendConfig
from ray.train.torch import TorchConfig


class NoBackend(TorchConfig):
    """A TorchConfig whose workers meet by themselves: see entry.py.

    Ray's own backend has them meet before one can choose its network interface, or see the devices
    of its neighbours, and on a loss it waits half a minute for workers that are gone.
    """

    backend_cls = BackendConfig.backend_cls
    train_func_context = BackendConfig.train_func_context
