"""The model as a transformers folder, at the end of a run."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_eve.models.checkpoints.folders import replace_folder
from lit_eve.training.auxiliary import auxiliaries, save_auxiliaries


class ExportModel(Callback):
    """Write ``<run>/model`` when the run ends: config, weights, processor, and heads of supervisions (``aligner.safetensors``);
    what a subclass of LitEve trains besides, in ``auxiliary.safetensors``.

    The folder appears as a whole: it is written beside its place and renamed.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export; a run that was interrupted does not come here."""
        if trainer.fast_dev_run:
            return
        weights = _gather(pl_module.model, keep=trainer.is_global_zero)
        own = _gather(nn.ModuleDict(auxiliaries(pl_module)), keep=trainer.is_global_zero)
        target = Path(trainer.default_root_dir, "model")
        if trainer.is_global_zero:
            with replace_folder(target, overwrite=True) as folder:
                pl_module.model.save_pretrained(folder, state_dict=weights)
                pl_module.processor.save_pretrained(folder)
                save_auxiliaries(own, folder)
        trainer.strategy.barrier()  # a process that ends earlier would be taken for the end of the job
        rank_zero_info(f"model exported to {target}")


def _gather(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """Full tensors in the CPU's memory, collected one by one from all processes; empty where they are not kept.

    Tied weights come once: collected twice, they would no longer be known as one.
    """
    once = {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    weights = {}
    for name, value in model.state_dict().items():
        if name not in once:
            continue
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            weights[name] = full.cpu()
    return weights
