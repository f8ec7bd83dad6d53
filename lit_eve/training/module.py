"""LitEve, the LightningModule: build, step, log, configure optimizers. What trains is in stages.py, the losses in the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Module, ModuleDict
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from lit_eve.data import EveDataModule, PromptBatch, model_inputs
from lit_eve.errors import ConfigError, LitEveError
from lit_eve.imports import asked_for, path_of
from lit_eve.losses import Term, weighted_sum
from lit_eve.models.generation.asking import ask, generate_answers
from lit_eve.models.supervision.weights import is_schedule, weight_at
from lit_eve.training.architecture import check_architecture
from lit_eve.training.auxiliary import auxiliaries, auxiliary_terms, check_as_built, fingerprint, make_auxiliaries
from lit_eve.training.callbacks.monitor import TrainingMonitor
from lit_eve.training.callbacks.nonfinite import NonFiniteGuard
from lit_eve.training.callbacks.stop import StopOnSignal
from lit_eve.training.callbacks.validation import ValidationSchedule
from lit_eve.training.distributed import sum_over_ranks
from lit_eve.training.fsdp import sharding_strategy
from lit_eve.training.known_to_data import KnownToData
from lit_eve.training.optimizers import build_optimizer, check_optimizer, trained_parameters, warmup_then_cosine
from lit_eve.training.record import log_scalars
from lit_eve.training.stages import STAGES, Lora, Stage, get_stage, print_stage
from lit_eve.training.term_sums import TermSums

if TYPE_CHECKING:
    from lit_eve.models import EveForConditionalGeneration, EveOutput
    from lit_eve.processing import Sample
    from lit_eve.processing.encoder import TemplateName

# transformers and the model are imported where they are used: `train.py fit --help` reads this file.


class LitEve(KnownToData, LightningModule):
    """Train an encoder-free vision-language model.

    Args:
        init_from: start from these weights: the run folder of an earlier stage, a Lightning checkpoint, a transformers folder
            or an official EVE checkpoint. The architecture is the one found there; values given below replace single keys.
        decoder: start a new model around this causal language model: a transformers folder or hub name. Beside ``init_from`` it
            tells the model's shape before the earlier stage was run, and must be what that stage started from.
        decoder_kind: what is built into the decoder, by name, with its arguments, as in {name: experts, parts: [mlp]}; null:
            dense (nothing), or that of init_from.
        patch_embedding: the patch embedding by name, with its arguments, as in {name: eve_v1, width: 1024}.
        projector: the projector by name, with its arguments, as in {name: mlp_gelu, depth: 2}.
        image_attention: which tokens see which, by name: {name: causal} reads images like text, {name: bidirectional} lets the
            tokens of an image see each other; null: causal, or that of init_from.
        positions: where tokens stand, by name, with its arguments: {name: sequential} counts them, {name: thw} gives image
            tokens a row and a column; null: sequential, or that of init_from.
        geometry: how large images become, by name, with its arguments, as in {name: eve_v1, image_size: 672, patch_size: 14}.
        image_mean: what is subtracted from pixels in 0..1, per channel; null: CLIP's, or that of init_from.
        image_std: what they are divided by then; null: CLIP's, or that of init_from.
        teacher: folder or hub name of the vision encoder (CLIP, SigLIP, DINOv2, DINOv3) whose patch features are aligned to;
            null trains without alignment loss.
        aligner: the aligner by name, with its arguments, as in {name: layerwise, layer_interval: 4}.
        teacher_layer: hidden state of the teacher that is aligned to; null: -2, or that of init_from.
        teacher_features: true takes the teacher's features from the shards (lit-eve pack --teacher) and does not load it.
        teacher_image_size: side in pixels of the squares that the teacher sees; null: what its config says, or that of
            init_from.
        alignment_weight: factor of the alignment loss in the total loss, 0: it is not computed; null: 1, or that of
            init_from.
        supervision: losses at image tokens by name, each with its factor in the total loss and its arguments, as in
            [{name: next_patch, weight: 0.5}]; null: patch_alignment with a teacher, none without. A weight may change over the
            run: [[0.5, 1.0], [1.0, 0.0]] is 1 until half of its steps, and then falls to 0.
        template: how the model is talked to (vicuna_v1, chat, ...); null: vicuna_v1, or that of init_from.
        around_images: tokens before and after each image, as in {before: "<img>", after: "</img>"}, or ordinary text with
            allow_text: true; null: none, or those of init_from.
        stage: what trains, at which rate: prealign, pretrain, finetune, or a stage of your own: its name, if a module of
            yours adds it to STAGES, or all of it (see `--model.stage.help`).
        lr: peak learning rate; null takes the stage's.
        lora: adapters of peft that train in place of the decoder's own weights, as in {rank: 16}; null takes the stage's.
        warmup: steps of linear warm-up, or their fraction of all steps if below 1; null takes the stage's.
        lr_floor: learning rate at the end of the cosine, as a fraction of the peak.
        optimizer: the optimizer by name, with its arguments, as in {name: adamw, betas: [0.9, 0.98]} or
            {name: muon, weight_decay: 0.1}. Rates and schedule are not among them: `lr`, `warmup` and `lr_floor` are the same
            for all optimizers.
        gradient_checkpointing: recompute the decoder's layers in the backward pass, for less memory.
        attn_implementation: how the decoder attends: packed, packed_varlen, packed_sdpa, or a name of transformers such as
            flash_attention_2; null: packed, which takes flash-attn, torch's varlen_attn or SDPA, the first that fits.
        max_new_tokens: length of the answers that `predict` generates.

    Raises:
        ConfigError: a key, name or value that does not exist or does not fit; raised before anything is loaded.
    """

    model_class: ClassVar[type[EveForConditionalGeneration] | None] = None
    """A subclass of EveForConditionalGeneration in a module of yours, for what changes how the model answers."""
    stock_inference: ClassVar[bool] = False
    """True promises that a subclass changes the training alone. Else a saved model says that it was trained by the subclass,
    and whoever loads it without its module is told so."""
    forward_arguments: ClassVar[Mapping[str, Any]] = {}
    """More arguments of the model's forward in training and validation, as in {"output_hidden_states": True}."""

    def __init__(
        self,
        init_from: str | None = None,
        decoder: str | None = None,
        decoder_kind: dict[str, Any] | None = None,
        patch_embedding: dict[str, Any] | None = None,
        projector: dict[str, Any] | None = None,
        image_attention: dict[str, Any] | None = None,
        positions: dict[str, Any] | None = None,
        geometry: dict[str, Any] | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        teacher: str | None = None,
        aligner: dict[str, Any] | None = None,
        teacher_layer: int | None = None,
        teacher_image_size: int | None = None,
        teacher_features: bool = False,
        alignment_weight: float | None = None,
        supervision: list[dict[str, Any]] | None = None,
        template: str | dict[str, Any] | None = None,
        around_images: dict[str, Any] | None = None,
        stage: Literal[*STAGES] | Stage = "pretrain",
        lr: float | None = None,
        lora: Lora | None = None,
        warmup: float | None = None,
        lr_floor: float = 0.0,
        optimizer: dict[str, Any] = {"name": "adamw"},  # noqa: B006 - never written to
        gradient_checkpointing: bool = False,
        attn_implementation: str | None = None,
        max_new_tokens: int = 64,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["stage", "lora"])
        self.stage = get_stage(stage, lr, warmup, lora)
        self.hparams["stage"] = asdict(self.stage)
        self.hparams["imports"] = asked_for()
        from lit_eve.training.blueprint import Blueprint

        self.blueprint = Blueprint(
            init_from=init_from,
            decoder=decoder,
            decoder_kind=decoder_kind,
            lora=self.stage.lora,
            patch_embedding=patch_embedding,
            projector=projector,
            image_attention=image_attention,
            positions=positions,
            geometry=geometry,
            image_mean=image_mean,
            image_std=image_std,
            teacher=teacher,
            aligner=aligner,
            teacher_layer=teacher_layer,
            teacher_image_size=teacher_image_size,
            teacher_features=teacher_features,
            alignment_weight=alignment_weight,
            supervision=supervision,
            template=template,
            around_images=around_images,
            attn_implementation=attn_implementation,
            model_class=self.model_class,
        )
        for key in ("init_from", "decoder", "teacher"):
            self.hparams[key] = getattr(self.blueprint, key)
        try:
            check_optimizer(optimizer)
        except ConfigError as error:
            raise ConfigError(f"model.optimizer: {error}") from error
        if not 0 <= lr_floor <= 1:
            raise ConfigError(f"model.lr_floor must lie between 0 and 1, got {lr_floor}")
        if max_new_tokens < 1:
            raise ConfigError(f"model.max_new_tokens must be at least 1, got {max_new_tokens}")
        self.optimizer, self.lr_floor = optimizer, lr_floor
        self.gradient_checkpointing, self.max_new_tokens = gradient_checkpointing, max_new_tokens
        self.model: EveForConditionalGeneration | None = None
        self.gradient_norm: Tensor | None = None  # of the last step, before clipping
        self._num_steps: int | None = None  # of the whole run
        self._evaluated = TermSums()  # of the batches of a validation or test

    # ---- build

    def configure_model(self) -> None:
        """Build the model once; set what trains."""
        if self.model is not None:
            return
        if (strategy := sharding_strategy(self)) is not None:
            self.stage.check_sharded()
            self.model = self.blueprint.build(strategy.shard, strategy.root_device, strategy.compute_dtype).train()
        else:
            self.model = self.blueprint.build().train()
        own = make_auxiliaries(self)
        if strategy is not None:
            for part in own.values():
                strategy.shard_part(part)
        if self.gradient_checkpointing:
            try:
                self.model.recompute_blocks()
            except ValueError as error:  # a few families of decoders have none
                raise ConfigError(f"model.gradient_checkpointing: {error}") from error
        if not self.stock_inference and (path := path_of(type(self))) is not None:
            self.model.config.imports["training"] = path
        self._rates = self.stage.apply(self.model, own)
        self._built = fingerprint(self.model)

    def auxiliary_parts(self) -> dict[str, Module]:
        """Modules of your own that take part in training alone, by name: heads with losses of their own.

        Called once, when the model is there (``self.model``). They train at the stage's rate unless a rule names them
        ("pixel_head"), are in checkpoints, resume exactly, are shared out by FSDP2, and are no part of the exported model. A
        later stage finds them beside it. What the model needs to answer belongs into a ``model_class`` instead.
        """
        return {}

    def auxiliary_losses(
        self, batch: Mapping[str, Any], output: EveOutput
    ) -> Mapping[str, Term | tuple[Tensor, Literal["images", "tokens"]]]:
        """Losses of your own, which are added to the model's.

        Args:
            batch: as the datamodule yields it.
            output: of the model; ``hidden_states`` are there if ``forward_arguments`` ask for them.

        Returns:
            by name, the *sum* over this batch (0-dim), and what it is averaged over: the images or the supervised tokens of
            the global batch. So it does not depend on how a batch was cut, as the model's do not. A third entry is its weight
            in the loss: 1 without it, 0 for what is to be logged alone. Logged are the means under these names, without their
            weights; ``train/loss`` and ``val/loss`` contain them.
        """
        return {}

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer over what the stage trains, warm-up and cosine over the steps of the run."""
        labels = {name: self.stage.label(name) for name in self._rates}
        trained = trained_parameters(self.model, self._rates, labels)
        trained += trained_parameters(ModuleDict(auxiliaries(self)), self._rates, labels)
        optimizer = build_optimizer(self.optimizer, trained, fused=self.trainer.precision != "16-mixed")
        total = self._num_steps = self.trainer.estimated_stepping_batches
        scheduler = warmup_then_cosine(optimizer, total, self.stage.warmup, self.lr_floor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_callbacks(self) -> list[Callback]:
        """What every run has: scalars, a validation of its end, and an end where the loss is not finite or a signal comes."""
        return [TrainingMonitor(), NonFiniteGuard(), ValidationSchedule(), StopOnSignal()]

    def on_fit_start(self) -> None:
        """Refuse what could not be saved; print what trains."""
        check_as_built(self, self._built, self._rates)
        if self.trainer.is_global_zero:
            from lit_eve.models.decoders.quantized import unpacked_sizes

            parameters = [*self.model.named_parameters(), *ModuleDict(auxiliaries(self)).named_parameters()]
            sizes = {name: parameter.numel() for name, parameter in parameters} | unpacked_sizes(self.model)
            print_stage(self.stage, sizes, self._rates)

    # ---- train

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Seed the random numbers of this batch, so that a resumed run draws the same ones (dropout, masking)."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        batches = self.trainer.fit_loop.epoch_loop.total_batch_idx
        torch.manual_seed(hash((seed, batches, self.global_rank)))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """The loss of one micro-batch, and under "terms" the sums that it is made of.

        Sums are divided by the supervised tokens and the images of the global batch, over all ranks and micro-batches.
        Lightning then divides the loss by the accumulated batches, and data parallelism averages gradients over ranks: the
        factor takes both back.
        """
        counts = torch.stack([batch["num_targets"], batch["num_images"]])  # (2,) of this rank's accumulation window
        counts = dict(zip(("tokens", "images"), sum_over_ranks(counts), strict=True))
        terms = self._terms(batch)
        factor = self.trainer.world_size * self.trainer.accumulate_grad_batches
        detached = {name: term._replace(total=term.total.detach()) for name, term in terms.items()}
        return {"loss": weighted_sum(terms, counts) * factor, "terms": detached}

    def _terms(self, batch: Mapping[str, Any]) -> dict[str, Term]:
        """What the loss of a batch is made of: the model's terms, and those of a subclass."""
        progress = self._progress(self.trainer.global_step) if self.trainer.state.fn == "fit" else 1.0
        output = self.model(**model_inputs(batch), progress=progress, **self.forward_arguments)
        return output.terms | auxiliary_terms(self.auxiliary_losses(batch, output), output.terms, type(self).__name__)

    def _progress(self, step: int) -> float:
        return min(1.0, step / self._num_steps)

    def scheduled_weights(self, step: int) -> dict[str, float]:
        """Weights of supervisions that change over the run, at an optimizer step (from 0), by the names of their losses."""
        model = self.model
        scheduled = {part: weight for part, weight in model.supervision_weights.items() if is_schedule(weight)}
        return {model.supervisions[part].term: weight_at(x, self._progress(step)) for part, x in scheduled.items()}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, and keep the norm that the gradient had before."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.gradient_norm = norm = get_total_norm(gradients)
        if isinstance(norm, DTensor):  # of sharded gradients
            self.gradient_norm = norm.full_tensor()
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            clip_grads_with_norm_(parameters, gradient_clip_val, self.gradient_norm)

    # ---- validate, test, predict

    def validation_step(
        self, batch: dict[str, Any] | PromptBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, list[str]] | None:
        """The terms of the loss, added up over batches and ranks as in one big batch; of prompts, ``answers``."""
        return self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log val/loss and its terms: val/language_loss, val/token_accuracy, val/alignment_loss."""
        self._log_metrics("val")

    def test_step(
        self, batch: dict[str, Any] | PromptBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, list[str]] | None:
        """The same as in validation, on the test split."""
        return self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        """Log the same as in validation under test/."""
        self._log_metrics("test")

    def predict_step(self, batch: list[Sample], batch_idx: int) -> list[dict[str, str]]:
        """Answer samples, greedily: ``id``, ``answer``, and the ``expected`` answer of the sample, for each.

        They are asked with the template of the data, as in training (``data.template``). A sample that cannot be asked (a
        broken image, no question) has an empty answer, and ``error`` says why.
        """
        template = data.template if isinstance(data := self.trainer.datamodule, EveDataModule) else None
        questions, prompts = ask(batch, self.processor, template)
        answers = self._answer(prompts, self.max_new_tokens, template)
        return [
            {"id": question.key, "answer": "", "expected": question.expected, "error": question.fault}
            if question.fault
            else {"id": question.key, "answer": answer, "expected": question.expected}
            for question, answer in zip(questions, answers, strict=True)
        ]

    def _answer(self, inputs: Mapping[str, Any], max_new_tokens: int, template: TemplateName | None = None) -> list[str]:
        """Greedy answers; ranks that share a sharded model stay in step until the last of them is done."""
        in_step = sharding_strategy(self) is not None
        return generate_answers(self.model, self.processor, inputs, max_new_tokens, template, synced_gpus=in_step)

    def _evaluate(self, batch: dict[str, Any] | PromptBatch) -> dict[str, list[str]] | None:
        if isinstance(batch, PromptBatch):
            return {"answers": self._answer(batch.inputs, batch.max_new_tokens, batch.template)}
        self._evaluated.add(self._terms(batch), batch)
        return None

    def _log_metrics(self, prefix: str) -> None:
        sums, self._evaluated = self._evaluated, TermSums()
        means = sums.means(self.device)
        if sums.names and not means and not self.trainer.sanity_checking:
            raise LitEveError(
                f"{prefix}: its batches hold no supervised token, so that there is no loss; samples that were skipped are "
                f"listed in {os.path.join(self.trainer.default_root_dir, 'skipped.jsonl')}"
            )
        scalars = {f"{prefix}/{name}": value for name, value in means.items()}
        log_scalars(self, scalars, prog_bar=[f"{prefix}/{name}" for name in ("loss", "language_loss", "token_accuracy")])

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add config and processor, so that the checkpoint can be loaded on its own."""
        from lit_eve.models.checkpoints.loading import ENTRY, describe

        checkpoint[ENTRY] = describe(self.model, self.processor)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another architecture, naming what differs."""
        check_architecture(checkpoint, self)
