"""The fields of transformers.TrainingArguments: ours, refused with a reason, or passed on.

A test compares the three with the installed version: no option is accepted without an effect.
"""

#: Our names of options that transformers.TrainingArguments has under another name.
TWINS = {
    "finetune_model_dir": "output_dir",
    "batch_size": "per_device_train_batch_size",
    "total_epoch": "num_train_epochs",
    "lr": "learning_rate",
}

#: Options that the run uses, and that are not passed to transformers.
OURS = {
    "seed",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "hub_revision",
    "hub_token",
}

_ALWAYS_EVALUATES = "a run always evaluates"
_RANKS = "evaluation ranks groups and gathers no batches of predictions"
_BEST = "the best model is the one with the best ndcg@10"
_UPLOAD = "the trained folder is uploaded once, when it is finished"
_LENGTHS = "the order of groups depends on --seed and the epoch"

#: Options that cannot be set, with the reason.
RESERVED = {
    "accelerator_config": "the run distributes groups to processes",
    "auto_find_batch_size": "a step is divided to fit: use a smaller --token_budget",
    "average_tokens_across_devices": "the loss is already the mean over all groups of a step",
    "batch_eval_metrics": _RANKS,
    "bf16_full_eval": "evaluation has the precision of training, --dtype",
    "data_seed": "use --seed",
    "dataloader_drop_last": "every group is used once per epoch",
    "dataloader_in_order": "the order of steps is fixed, so that a run can resume",
    "disable_tqdm": "a run shows its own progress line",
    "do_eval": _ALWAYS_EVALUATES,
    "do_predict": "use `rerank-plugin rerank` after the run",
    "do_train": "a run always trains",
    "enable_jit_checkpoint": "SIGTERM and Ctrl-C save a checkpoint anyway",
    "eval_accumulation_steps": _RANKS,
    "eval_do_concat_batches": _RANKS,
    "eval_on_start": "a run always evaluates the model before the first step",
    "eval_use_gather_object": _RANKS,
    "fp16_full_eval": "evaluation has the precision of training, --dtype",
    "greater_is_better": _BEST,
    "hub_always_push": _UPLOAD,
    "hub_strategy": _UPLOAD,
    "ignore_data_skip": "a resumed run continues with the groups that it has not seen",
    "include_for_metrics": _RANKS,
    "include_num_input_tokens_seen": "history.jsonl counts pairs",
    "label_names": "the labels of a group are its 'pos' and 'neg'",
    "label_smoothing_factor": "groups have no class labels to smooth",
    "length_column_name": _LENGTHS,
    "liger_kernel_config": "Liger has no kernels for encoders",
    "load_best_model_at_end": "a run always keeps its best model",
    "local_rank": "torchrun and accelerate launch set it",
    "logging_nan_inf_filter": "hiding NaN would hide that a run diverges",
    "metric_for_best_model": _BEST,
    "neftune_noise_alpha": "its noise depends on the length of rows, which are packed",
    "parallelism_config": "processes train by DDP, FSDP or DeepSpeed",
    "per_device_eval_batch_size": "evaluation fills its batches by tokens",
    "prediction_loss_only": _RANKS,
    "remove_unused_columns": "groups have no columns to remove",
    "restore_callback_states_from_checkpoint": "a resumed run always restores its whole state",
    "resume_from_checkpoint": "the same command resumes an interrupted run",
    "save_on_each_node": "the main process writes the folder from which all resume",
    "save_only_model": "a run cannot resume without the optimizer state",
    "save_total_limit": "a run keeps its best model and its newest checkpoint",
    "skip_memory_metrics": "memory is not part of the history",
    "train_sampling_strategy": _LENGTHS,
    # The name of the same in older versions of transformers.
    "group_by_length": _LENGTHS,
    "use_cache": "encoders have no key-value cache",
    "use_cpu": "use --device cpu",
    "use_liger_kernel": "Liger has no kernels for encoders",
}

#: Options that are passed on to transformers, or used as transformers would.
PASSED_ON = {
    *("activation_checkpointing", "activation_checkpointing_kwargs"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "weight_decay"),
    *("optim", "optim_args", "optim_target_modules"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps"),
    *("bf16", "fp16", "tf32", "full_determinism", "gradient_accumulation_steps"),
    *("torch_compile", "torch_compile_backend", "torch_compile_mode", "torch_empty_cache_steps"),
    *("dataloader_multiprocessing_context", "dataloader_num_workers", "dataloader_pin_memory"),
    *("dataloader_persistent_workers", "dataloader_prefetch_factor"),
    *("ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters"),
    *("ddp_static_graph", "ddp_timeout", "deepspeed", "fsdp", "fsdp_config"),
    *("eval_delay", "eval_steps", "eval_strategy", "save_steps", "save_strategy"),
    *("debug", "log_level", "log_level_replica", "log_on_each_node"),
    *("logging_first_step", "logging_steps", "logging_strategy"),
    *("project", "report_to", "run_name"),
    *("trackio_bucket_id", "trackio_space_id", "trackio_static_space_id"),
    # Older versions of transformers have these.
    *("logging_dir", "warmup_ratio"),
}

#: Numbers that must be more than 0, and those that may be 0.
POSITIVE = {
    *("eval_steps", "save_steps", "logging_steps", "gradient_accumulation_steps"),
    *("adam_epsilon", "ddp_timeout", "ddp_bucket_cap_mb", "dataloader_prefetch_factor"),
    "torch_empty_cache_steps",
}
NOT_NEGATIVE = {
    *("adam_beta1", "adam_beta2", "max_grad_norm", "weight_decay", "warmup_steps", "eval_delay"),
    "dataloader_num_workers",
}

#: Options that require one of some others.
BESIDE = {
    "activation_checkpointing_kwargs": ("activation_checkpointing", "gradient_checkpointing"),
    "gradient_checkpointing_kwargs": ("activation_checkpointing", "gradient_checkpointing"),
    "dataloader_multiprocessing_context": ("dataloader_num_workers",),
    "dataloader_persistent_workers": ("dataloader_num_workers",),
    "dataloader_prefetch_factor": ("dataloader_num_workers",),
    "fsdp_config": ("fsdp",),
    "hub_model_id": ("push_to_hub",),
    "hub_private_repo": ("push_to_hub",),
    "hub_revision": ("push_to_hub",),
    "hub_token": ("push_to_hub",),
}

#: Intervals, and the strategies that they require.
INTERVALS = {
    "eval_steps": "eval_strategy",
    "logging_steps": "logging_strategy",
    "save_steps": "save_strategy",
}

#: Optimizers without arguments, and the prefixes of those that take target modules.
WITHOUT_ARGS = ("adamw_torch", "adamw_torch_fused", "adafactor")
BY_LAYERS = ("galore", "apollo")
