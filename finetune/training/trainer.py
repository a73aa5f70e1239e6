"""transformers' Trainer for groups: its loop, with our batches, loss and evaluation."""

import ctypes
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINING_ARGS_NAME

from rerank_plugin.engine.scorer import Scorer
from rerank_plugin.errors import OptionError
from rerank_plugin.io.disk_errors import saving
from rerank_plugin.model.loaded import quiet_transformers
from rerank_plugin.model.loading import load_model
from rerank_plugin.model.modular import ModularClassifier

from ..data.dataset import GroupDataset
from ..data.sampling import GroupBatches
from ..evaluation.scoring import Evaluation, evaluate_groups, interleaved
from ..losses.base import Loss
from .arguments import refused_options
from .callbacks import Stopwatch
from .checkpoint import (
    RESUMES,
    Stateful,
    checkpoint_dir,
    complete_checkpoint,
    read_record,
    torch_writes,
)
from .collapse_guard import CollapseGuard, StepRecord
from .collator import GroupCollator, GroupLoader, MicroBatch, SampledGroups, batch_logits
from .distributed import (
    check_saves_whole,
    gather,
    process_count,
    unsynchronized,
    wait_for_everyone,
    wrap_layers,
)

#: Parameters of glibc's mallopt, and their documented defaults.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
MALLOPT_DEFAULTS = {M_TRIM_THRESHOLD: 128 * 1024, M_MMAP_MAX: 65_536}


class RerankTrainer(Trainer):
    """Trains on groups, and evaluates with the scorer that serves.

    Args:
        model: The model to train.
        args: transformers' training arguments.
        scorer: Scores pairs with the same model.
        loss: The loss of a batch of groups.
        train_groups: The training groups.
        eval_groups: The validation groups, evaluated with all their candidates.
        group_size: Passages of a group in a step.
        stopwatch: Is paused during evaluations and checkpoints.
        guard: Gets the figures of every step.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        args: TrainingArguments,
        scorer: Scorer,
        loss: Loss,
        train_groups: GroupDataset,
        eval_groups: GroupDataset,
        group_size: int,
        stopwatch: Stopwatch,
        guard: CollapseGuard,
    ) -> None:
        self.scorer = scorer
        self.loss = loss
        self.train_groups = SampledGroups(train_groups, size=group_size, seed=args.seed)
        self.eval_groups = eval_groups
        self.stopwatch = stopwatch
        self.guard = guard
        #: What a checkpoint keeps besides Trainer's own state, by name.
        self.stateful: dict[str, Stateful] = {"stopwatch": stopwatch, "guard": guard}
        self._latest: Evaluation | None = None
        #: Whether the scorer has a whole model again, after training a sharded one.
        self._is_whole_again = False
        #: Sums over the groups of the step: loss, loss at chance, spread of logits, lowest loss.
        self._sums = torch.zeros(4)
        self._step_groups = 1
        #: Pairs in the training steps of this process so far.
        self.train_pairs = 0
        with refused_options():
            super().__init__(
                model=model,
                args=args,
                data_collator=GroupCollator(scorer),
                train_dataset=self.train_groups,
                # transformers needs one for an evaluation strategy; `evaluate` is overridden.
                eval_dataset=eval_groups,
                processing_class=scorer.encoder.tokenizer,
            )
        # The loss is divided by the groups of the whole optimizer step, not once per micro-batch.
        self.model_accepts_loss_kwargs = True
        check_checkpointing(model, args)
        if self.is_fsdp_enabled:
            wrap_layers(model)
        if self.is_deepspeed_enabled:
            check_saves_whole(self.accelerator.state.deepspeed_plugin.deepspeed_config)

    @property
    def latest(self) -> Evaluation:
        """Return the latest evaluation, query by query."""
        assert self._latest is not None, "no evaluation yet"
        return self._latest

    def pairs_per_second(self) -> float:
        """Return the training speed so far; all processes have about as many pairs."""
        return self.train_pairs * process_count() / self.stopwatch.seconds

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator, and let the guard have the norm of every gradient it clips."""
        super().create_accelerator_and_postprocess()
        clip = self.accelerator.clip_grad_norm_

        def clip_and_record(*arguments: Any, **named: Any) -> Any:
            norm = clip(*arguments, **named)
            self.guard.gradient_norm = None if norm is None else float(norm)
            return norm

        self.accelerator.clip_grad_norm_ = clip_and_record

    def get_train_dataloader(self) -> GroupLoader:
        """Return the batches of this process; accelerate's sharding would repeat or drop groups."""
        args = self.args
        batches = GroupBatches(
            len(self.train_groups),
            batch_size=args.per_device_train_batch_size,
            seed=args.seed,
            rank=args.process_index,
            processes=args.world_size,
        )
        return GroupLoader(
            self.train_groups,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            # An option of transformers since 5.12.
            multiprocessing_context=getattr(args, "dataloader_multiprocessing_context", None),
            # The seeds of workers are not drawn from the generator that dropout uses.
            generator=torch.Generator().manual_seed(args.seed),
        )

    def _get_num_items_in_batch(
        self, batch_samples: list[MicroBatch], device: torch.device
    ) -> Tensor:
        self._step_groups = sum(gather(sum(batch["groups"] for batch in batch_samples)))
        return torch.tensor(self._step_groups, device=device)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create transformers' optimizer; an option that it refuses is an error of one line."""
        with refused_options():
            # transformers 5.0 takes no model.
            return super().create_optimizer(*(() if model is None else (model,)))

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Create transformers' schedule; an option that it refuses is an error of one line."""
        with refused_options():
            return super().create_scheduler(num_training_steps, optimizer)

    def train(self, *arguments: Any, **named: Any) -> Any:
        """Train as transformers does, with freed memory kept between steps."""
        with freed_memory_kept(), without_cudnn_attention():
            return super().train(*arguments, **named)

    def training_step(
        self,
        model: nn.Module,
        inputs: MicroBatch,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Run forward and backward for each micro-batch, and return the loss of all groups.

        Every process takes the same number of micro-batches, or some would wait forever.
        """
        batches, counts = list(inputs["micro_batches"]), float(inputs["groups"] > 0)
        weights = [counts] * len(batches)
        missing = max(gather(len(batches))) - len(batches)
        batches, weights = batches + batches[-1:] * missing, weights + [0.0] * missing
        losses = []
        for number, (batch, weight) in enumerate(zip(batches, weights, strict=True), 1):
            with nullcontext() if number == len(batches) else self._no_sync(model):
                weighted = {**batch, "weight": weight}
                losses.append(super().training_step(model, weighted, num_items_in_batch))
        if self.accelerator.sync_gradients:
            self.guard.latest = self._step_record()
        return torch.stack(losses).sum()

    def _no_sync(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Let processes exchange gradients after the last micro-batch only."""
        if self.accelerator.distributed_type == DistributedType.FSDP:
            return nullcontext()
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            # Its backward pass makes the optimizer's step, too.
            return unsynchronized(self.accelerator.gradient_state)
        no_sync: AbstractContextManager[Any] = self.accelerator.no_sync(model=model)
        return no_sync

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the sum of the groups' losses over the number of groups in the whole step."""
        logits = batch_logits(model, inputs, self.scorer.device)
        labels, sizes, weight = inputs["labels"], inputs["sizes"], inputs.get("weight", 1.0)
        groups = len(sizes) if num_items_in_batch is None else num_items_in_batch
        teacher = inputs["teacher"]
        loss = self.loss(logits, labels, sizes, teacher) * weight
        if weight:
            self.train_pairs += len(logits)
            chance = self.loss(torch.zeros_like(logits), labels, sizes, teacher)
            lowest = self.loss.lowest(labels, sizes)
            self._watch(logits.detach(), sizes, loss.detach(), chance, lowest)
        # DDP averages gradients over processes; the loss is a sum over the groups of all of them.
        loss = loss * self.args.world_size / groups
        return (loss, {"logits": logits}) if return_outputs else loss

    def _watch(
        self, logits: Tensor, sizes: Sequence[int], loss: Tensor, chance: Tensor, lowest: Tensor
    ) -> None:
        """Add a micro-batch to the figures of the step."""
        spread = sum(group.std(correction=0) for group in logits.split(list(sizes)))
        self._sums += torch.stack([loss, chance, torch.as_tensor(spread), lowest]).cpu()

    def _step_record(self) -> StepRecord:
        """Return the figures of the step, those of all processes: they have to stop together."""
        sums = torch.stack(gather(self._sums)).sum(0) / self._step_groups
        self._sums = torch.zeros(4)
        return StepRecord(*sums.tolist())

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Evaluate the validation groups, and return `eval_loss`, `eval_ndcg@10` …."""
        groups = self.eval_groups if eval_dataset is None else eval_dataset
        self._latest = self.evaluate_groups(groups)
        figures = {"loss": self._latest.loss, **self._latest.means}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(metrics)
        with self.stopwatch.paused():
            self.control = self.callback_handler.on_evaluate(
                self.args, self.state, self.control, metrics
            )
        return metrics

    def evaluate_groups(self, groups: GroupDataset, *, with_loss: bool = True) -> Evaluation:
        """Evaluate groups with the current model, each process its share of them.

        The precision is that of training, which is the default one for serving. The loss may need
        teacher scores, which not all groups have.
        """
        process, processes = self.args.process_index, self.args.world_size
        if self.is_sharded and not self._is_whole_again:
            # Each process holds a shard of the weights: they evaluate all groups together.
            self.scorer.model, process, processes = self.model_wrapped, 0, 1
            self.scorer.without_gradients, self.scorer.adapts_budget = torch.no_grad, False
        share = groups.select(list(range(process, len(groups), processes)))
        loss = self.loss if with_loss else None
        with self.stopwatch.paused(), self.compute_loss_context_manager():
            evaluation = evaluate_groups(self.scorer, share, loss) if len(share) else None
            if processes == 1 and evaluation:
                # Sums on GPUs differ in their last bits: all processes decide by those of one.
                return gather(evaluation)[0]
            return interleaved(gather(evaluation))

    @property
    def is_sharded(self) -> bool:
        """Return whether each process holds a shard of the weights."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def load_weights(self, folder: Path, *, trust_remote_code: bool = False) -> None:
        """Load the weights of a saved model of this run, for evaluation and not for training."""
        if not self.is_sharded:
            self._load_from_checkpoint(str(folder))
            return
        model = load_model(folder, trust_remote_code=trust_remote_code).model
        nn.Module.to(model, self.args.device)
        budget = self.scorer.token_budget
        self.scorer = Scorer(model, self.scorer.encoder, token_budget=budget)
        self._is_whole_again = True

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        model = self.model if model is None else model
        # transformers expects the weights of the whole model in one file.
        if isinstance(model, ModularClassifier) and not self.is_fsdp_enabled:
            model.load_folder(Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the whole model, also where each process holds a shard of it."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)
            return
        # Importing it takes a second.
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        self._save(output_dir, get_model_state_dict(self.model, options=options))

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        with quiet_transformers():
            super()._save(output_dir, state_dict)
        # The only file that could not be loaded with `weights_only`; nothing reads it.
        folder = Path(output_dir or str(self.args.output_dir))
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = checkpoint_dir(Path(str(self.args.output_dir)), self.state.global_step)
        record = {
            "train_pairs": gather(self.train_pairs),
            "stateful": {name: stateful.state_dict() for name, stateful in self.stateful.items()},
        }
        with self.stopwatch.paused(), saving(folder, again=RESUMES):
            if self.is_world_process_zero():
                # Files of a kill in the middle of the same checkpoint.
                shutil.rmtree(folder, ignore_errors=True)
            wait_for_everyone()
            with torch_writes(folder.parent):
                super()._save_checkpoint(model, trial)
            wait_for_everyone()
            if self.is_world_process_zero():
                complete_checkpoint(folder, record)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        record = read_record(Path(checkpoint))
        self.train_pairs = record["train_pairs"][self.args.process_index]
        for name, stateful in self.stateful.items():
            stateful.load_state_dict(record["stateful"][name])


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let glibc's allocator keep freed memory for the next step, and return it at the end.

    Otherwise every step's activations are mapped, zeroed page by page by the system, and unmapped:
    an eighth of the time of a step of a base-size model on a CPU. Without glibc it does nothing.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(M_MMAP_MAX, 0)
    try:
        yield
    finally:
        for name, value in MALLOPT_DEFAULTS.items():
            libc.mallopt(name, value)
        libc.malloc_trim(0)


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Keep torch's attention from cuDNN, which it prefers on Hopper GPUs.

    With a mask and some lengths cuDNN's gradients are NaN (pytorch issue 196678), and it plans
    anew for every shape that it has not seen, which takes longer than the attention.
    """
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled)


def check_checkpointing(model: nn.Module, args: TrainingArguments) -> None:
    """Check that a model supports activation checkpointing, if that is asked for.

    Raises:
        OptionError: it does not.
    """
    # transformers also calls it `activation_checkpointing` since 5.12.
    requested = args.gradient_checkpointing or getattr(args, "activation_checkpointing", False)
    if requested and not getattr(model, "supports_gradient_checkpointing", False):
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        problem = f"not supported by {kind} models in transformers: use a smaller --token_budget"
        raise OptionError("gradient_checkpointing", problem)
