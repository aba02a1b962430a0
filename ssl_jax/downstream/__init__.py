"""What a representation is worth: evaluators of a frozen encoder, and supervised tasks.

An evaluator is a frozen dataclass of settings, called as `evaluator(encoder, data)`, that yields (name, value).
"""

EVALUATORS = {
    "linear_probe": "ssl_jax.downstream.linear_probe:LinearProbe",
    "knn": "ssl_jax.downstream.knn:KNN",
    "few_shot": "ssl_jax.downstream.few_shot:FewShot",
    "label_efficiency": "ssl_jax.downstream.label_efficiency:LabelEfficiency",
    "finetune": "ssl_jax.downstream.finetune:FineTune",
    "classification": "ssl_jax.downstream.classification_metrics:ClassificationMetrics",
    "text_classification": "ssl_jax.downstream.text_classification:TextClassificationMetrics",
    "question_answering": "ssl_jax.downstream.question_answering:QuestionAnsweringMetrics",
    "translation": "ssl_jax.downstream.bleu:TranslationMetrics",
    "next_token": "ssl_jax.downstream.language_modelling:NextTokenLoss",
    "masked_token": "ssl_jax.downstream.language_modelling:MaskedTokenLoss",
    "perplexity": "ssl_jax.downstream.language_modelling:Perplexity",
    "lambada": "ssl_jax.downstream.language_modelling:Lambada",
    "zero_shot": "ssl_jax.downstream.zero_shot:ZeroShot",
    "retrieval": "ssl_jax.downstream.retrieval:Retrieval",
}

TASKS = {
    "image_encoder": "ssl_jax.interop.image_encoder:ImageEncoder",
    "classification": "ssl_jax.downstream.classification:Classification",
    "text_classification": "ssl_jax.downstream.text_classification:TextClassification",
    "question_answering": "ssl_jax.downstream.question_answering:QuestionAnswering",
    "translation": "ssl_jax.downstream.translation:Translation",
}
