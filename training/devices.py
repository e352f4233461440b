"""The devices that train one network together, each a process with its share of every batch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.utilities import rank_zero_only
from torch import Tensor, cuda, distributed, nn

from training.config import Config


def launch(config: Config) -> Fabric:
    """Start the processes that the configuration asks for, or join those that torchrun started.

    Raises:
        ValueError: this machine lacks what `refuse_lacking` names, torchrun started another number of processes, or
            several nodes are asked for without it.
    """
    refuse_lacking(config)
    world = config.devices * config.nodes
    if TorchElasticEnvironment.detect():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // here
        if (here, nodes) != (config.devices, config.nodes):
            raise ValueError(
                f"torchrun started {here} processes on {nodes} nodes, but devices = {config.devices} and "
                f"nodes = {config.nodes}: they decide what is learnt, so say --set devices={here} --set nodes={nodes}"
            )
    elif config.nodes > 1:
        raise ValueError(f"nodes = {config.nodes}: start `-m training fit` by torchrun on each of them")
    # phase 1 leaves stage 2 without gradients, which plain DDP refuses
    fabric = Fabric(
        accelerator=config.accelerator,
        strategy="ddp_find_unused_parameters_true" if world > 1 else "auto",
        devices=config.devices,
        num_nodes=config.nodes,
        precision=config.precision,
    )
    fabric.launch()
    return fabric


def refuse_lacking(config: Config) -> None:
    """Refuse a configuration that this machine could only train otherwise than it says: on CPUs, or less precisely.

    Raises:
        ValueError: there are fewer GPUs than it wants, or none and half precision needs one; the message says what to
            set.
    """
    there = 0 if config.accelerator == "cpu" else cuda.device_count()
    wants_gpus = config.accelerator == "cuda" or (config.accelerator == "auto" and config.devices > 1)
    lacking = []
    if wants_gpus and there < config.devices:
        remedies = [f"--set accelerator=cpu trains in {config.devices} of the CPU's processes"]
        if there or config.accelerator == "auto":
            remedies.insert(0, f"--set devices={max(there, 1)} trains on {'the GPUs' if there else 'the CPU'}")
        told = f"devices = {config.devices} are GPUs, of which this machine has {there}"
        lacking.append(f"{told}: {', '.join(remedies)}")
    if config.precision == "16-mixed" and not there:
        lacking.append("precision = '16-mixed' needs a GPU: --set precision=32-true, or bf16-mixed")
    if lacking:
        raise ValueError("; ".join(lacking))


def together() -> bool:
    """Whether several processes learn together."""
    return distributed.is_available() and distributed.is_initialized()


@contextmanager
def first_first() -> Iterator[bool]:
    """Let the first of the processes that learn together do something before the others come to it; whether it is it.

    `Fabric.rank_zero_first` without a Fabric: what comes between trainings knows none.
    """
    several, first = together(), is_first()  # they may be started in between
    if several and not first:
        distributed.barrier()
    try:
        yield first
    finally:
        if several and first:
            distributed.barrier()


def is_first() -> bool:
    """Whether this is the first of the processes that learn together, or the only one."""
    return int(rank_zero_only.rank) == 0  # type: ignore[attr-defined]


def gather(fabric: Fabric, tensor: Tensor) -> Tensor:
    """The rows of every device, gradients included; each device must have as many."""
    if fabric.world_size == 1:
        return tensor
    gathered = fabric.all_gather(tensor, sync_grads=tensor.is_floating_point())
    assert isinstance(gathered, Tensor)
    return gathered.flatten(0, 1)


def total(fabric: Fabric, tensor: Tensor) -> Tensor:
    """The sum over the devices, without a gradient."""
    if fabric.world_size == 1:
        return tensor
    summed = fabric.all_reduce(tensor.detach().clone(), reduce_op="sum")
    assert isinstance(summed, Tensor)
    return summed


def mean(fabric: Fabric, tensor: Tensor) -> Tensor:
    """The mean over the devices, without a gradient."""
    return total(fabric, tensor) / fabric.world_size


def share_statistics(fabric: Fabric, network: nn.Module) -> None:
    """Give every device the same running statistics of batch normalisation: the mean of what each now has.

    DDP hands the first device's to all before each step, so they are of that device's share of the patches, but for the
    last step.
    """
    if fabric.world_size == 1:
        return
    for buffer in network.buffers():
        if buffer.is_floating_point():
            buffer.copy_(mean(fabric, buffer))
