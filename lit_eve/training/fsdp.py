"""Fully sharded data parallelism (FSDP2) for any number of devices and nodes: ``trainer.strategy: fsdp2``.

Every process holds its part of each weight, gradient and optimizer state. The decoder's blocks are gathered one at a time
while they run; everything else (embeddings, head, patch embedding, projector, aligner) once per step. Runs on GPUs (nccl) and
CPUs (gloo).
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.optim import Optimizer

from lit_eve.errors import ConfigError
from lit_eve.models.checkpoints.sharded import read_checkpoint
from lit_eve.models.decoders import blocks_of
from lit_eve.training.auxiliary import auxiliaries
from lit_eve.training.sharded_checkpoint import ShardedCheckpoints, load_model, load_optimizer


class ShardedMixedPrecision(Precision):
    """bf16-mixed under FSDP2: weights are kept in float32 and gathered in bfloat16; gradients are reduced in float32.

    There is no autocast: what the model computes in float32 (norms, softmax, losses), it does by itself.
    """

    precision = "bf16-mixed"


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all devices of all nodes.

    Precision: ``32-true``; ``bf16-mixed`` (float32 weights, bfloat16 computation, float32 reduction); ``bf16-true``.

    Checkpoints are folders to which every process writes its part, while training goes on
    (:mod:`lit_eve.models.checkpoints.sharded`). They are resumed by any number of processes, and so are the single files of
    other strategies.

    Args:
        replicas: copies of the model (hybrid sharding): with one per node, weights travel inside a node only, and gradients
            between nodes. The devices of a copy share it.
        asynchronous: write checkpoints in the background.
        timeout_minutes: how long a process waits for the others before it takes them for dead.
    """

    strategy_name = "fsdp2"

    def __init__(self, replicas: int = 1, asynchronous: bool = True, timeout_minutes: float = 30) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=1)
        self.replicas = replicas
        self._timeout = timedelta(minutes=timeout_minutes)
        self._resumed_from: Path | None = None
        self.checkpoints = ShardedCheckpoints(asynchronous, self._timeout)

    # ---- devices

    def setup_environment(self) -> None:
        """Connect the processes, and arrange them in copies of the model."""
        world = self.num_nodes * self.num_processes
        if self.replicas < 1 or world % self.replicas:
            raise ConfigError(f"trainer.strategy: {world} devices cannot be shared out to replicas = {self.replicas}")
        # Lightning's default of 1 would train every process for itself.
        self._data_parallel_size = world
        super().setup_environment()
        if self.replicas > 1:
            shape = (self.replicas, world // self.replicas)
            self._device_mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=("replicate", "shard"))

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Every process has its own rows."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    # ---- precision

    @property
    def precision_plugin(self) -> Precision:
        """How numbers are kept and computed."""
        return self._precision_plugin if self._precision_plugin is not None else Precision()

    @precision_plugin.setter
    def precision_plugin(self, precision_plugin: Precision | None) -> None:
        if isinstance(precision_plugin, MixedPrecision) and precision_plugin.precision == "bf16-mixed":
            precision_plugin = ShardedMixedPrecision()
        if precision_plugin is not None and precision_plugin.precision not in ("32-true", "bf16-mixed", "bf16-true"):
            raise ConfigError(
                f"trainer.precision: fsdp2 has no {precision_plugin.precision}; choose 32-true, bf16-mixed or bf16-true"
            )
        self._precision_plugin = precision_plugin

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type in which the model computes."""
        return torch.bfloat16 if isinstance(self.precision_plugin, ShardedMixedPrecision | HalfPrecision) else torch.float32

    # ---- model

    def shard(self, model: nn.Module) -> None:
        """Shard an EVE model in place: each block of its decoder, and all the rest together.

        The head is in the rest, which stays gathered from the forward to the backward pass: the loss applies it in chunks, some
        of which are computed again in the backward pass.
        """
        for block in blocks_of(model.get_decoder()):
            self.shard_part(block)
        self.shard_part(model)
        model._is_fsdp_managed_module = True  # transformers' generate: no process stops before the others

    def shard_part(self, part: nn.Module) -> None:
        """Shard a module in place, as a group of its own: it is gathered while its own forward runs."""
        policy = MixedPrecisionPolicy(param_dtype=self.compute_dtype, reduce_dtype=torch.float32)
        fully_shard(part, mesh=self._fsdp_mesh, mp_policy=policy)

    @property
    def _fsdp_mesh(self) -> Any:
        return self.device_mesh if self.replicas > 1 else self.device_mesh["data_parallel"]

    # ---- checkpoints

    # As soon as the model is built: before the data is asked for its length, so that it can go on where it was.
    restore_checkpoint_after_setup = False
    lightning_restore_optimizer = True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """This process's part of the weights."""
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """This process's part of the optimizer's state."""
        return getattr(optimizer, "_optimizer", optimizer).state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Begin to write a checkpoint; it appears at ``filepath`` when every process has written its part."""
        self.checkpoints.save(checkpoint, self.broadcast(filepath))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Everything but the tensors; these are read by the methods below."""
        self._resumed_from = Path(self.broadcast(checkpoint_path))
        return read_checkpoint(self._resumed_from)

    def load_model_state_dict(self, checkpoint: dict[str, Any], strict: bool = True) -> None:
        """Read this process's part of the weights."""
        load_model(self._resumed_from, checkpoint, self.lightning_module)

    def load_optimizer_state_dict(self, checkpoint: dict[str, Any]) -> None:
        """Read this process's part of the optimizer's state."""
        load_optimizer(self._resumed_from, checkpoint, self.optimizers[0])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Notice that a checkpoint is complete or could not be written; copies of the model compare gradients once per step."""
        self.checkpoints.poll()
        if self.replicas > 1:
            trainer = self.lightning_module.trainer
            done = batch_idx + 1
            last = done % trainer.accumulate_grad_batches == 0 or done == trainer.num_training_batches
            for part in (self.lightning_module.model, *auxiliaries(self.lightning_module).values()):
                part.set_requires_all_reduce(last)

    def wait_for_checkpoint(self) -> None:
        """Return when the checkpoint that is being written is complete."""
        self.checkpoints.wait()
        self.barrier()

    def teardown(self) -> None:
        """Finish the checkpoint that is being written."""
        self.checkpoints.close()
        super().teardown()


StrategyRegistry.register(FSDP2Strategy.strategy_name, FSDP2Strategy, description=FSDP2Strategy.__doc__.splitlines()[0])


def sharding_strategy(module: LightningModule) -> FSDP2Strategy | None:
    """The strategy of the module's trainer, if it shards."""
    trainer = module._trainer
    strategy = None if trainer is None else trainer.strategy
    return strategy if isinstance(strategy, FSDP2Strategy) else None
