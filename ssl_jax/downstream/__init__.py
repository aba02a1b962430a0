"""What a representation is worth: evaluators of a frozen encoder, and supervised tasks.

An evaluator is a frozen dataclass of settings, called as `evaluator(encoder, data)`, that yields (name, value).
"""

EVALUATORS = {
    "linear_probe": "ssl_jax.downstream.linear_probe:LinearProbe",
    "knn": "ssl_jax.downstream.knn:KNN",
    "few_shot": "ssl_jax.downstream.few_shot:FewShot",
    "label_efficiency": "ssl_jax.downstream.label_efficiency:LabelEfficiency",
    "finetune": "ssl_jax.downstream.classification:FineTune",
}

TASKS = {
    "classification": "ssl_jax.downstream.classification:Classification",
}
