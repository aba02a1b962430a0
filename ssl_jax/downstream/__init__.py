"""What a representation is worth: evaluators of a frozen encoder, and supervised tasks.

An evaluator (`evaluator.Evaluator`) is a frozen dataclass of settings, called as `evaluator(encoder, data)`, that yields
records; `evaluation.Evaluation` runs those of a config.
"""

EVALUATORS = {
    "linear_probe": "ssl_jax.downstream.evaluators.linear_probe:LinearProbe",
    "knn": "ssl_jax.downstream.evaluators.knn:KNN",
    "few_shot": "ssl_jax.downstream.evaluators.few_shot:FewShot",
    "label_efficiency": "ssl_jax.downstream.evaluators.label_efficiency:LabelEfficiency",
    "finetune": "ssl_jax.downstream.evaluators.finetune:FineTune",
    "classification": "ssl_jax.downstream.evaluators.classification:ClassificationMetrics",
    "text_classification": "ssl_jax.downstream.supervised.text_classification:TextClassificationMetrics",
    "question_answering": "ssl_jax.downstream.supervised.question_answering:QuestionAnsweringMetrics",
    "translation": "ssl_jax.downstream.evaluators.translation:TranslationMetrics",
    "next_token": "ssl_jax.downstream.evaluators.language_modelling:NextTokenLoss",
    "masked_token": "ssl_jax.downstream.evaluators.language_modelling:MaskedTokenLoss",
    "perplexity": "ssl_jax.downstream.evaluators.language_modelling:Perplexity",
    "lambada": "ssl_jax.downstream.evaluators.language_modelling:Lambada",
    "zero_shot": "ssl_jax.downstream.evaluators.zero_shot:ZeroShot",
    "retrieval": "ssl_jax.downstream.evaluators.retrieval:Retrieval",
}

TASKS = {
    "image_encoder": "ssl_jax.interop.image_encoder:ImageEncoder",
    "classification": "ssl_jax.downstream.supervised.classification:Classification",
    "text_classification": "ssl_jax.downstream.supervised.text_classification:TextClassification",
    "question_answering": "ssl_jax.downstream.supervised.question_answering:QuestionAnswering",
    "translation": "ssl_jax.downstream.supervised.translation:Translation",
}
