"""Pretext tasks. None of them uses labels."""

# One line per task: its name in a config -> its module and class. A new task needs its file, a line here and a config.
TASKS: dict[str, str] = {
    "masked_image": "ssl_jax.pretext.masked_image:MaskedImage",
    "next_token": "ssl_jax.pretext.next_token:NextToken",
    "masked_token": "ssl_jax.pretext.masked_token:MaskedToken",
    "ijepa": "ssl_jax.pretext.ijepa:IJEPA",
    "data2vec_image": "ssl_jax.pretext.data2vec:Data2VecImage",
    "data2vec_text": "ssl_jax.pretext.data2vec:Data2VecText",
    "self_distillation": "ssl_jax.pretext.self_distillation:SelfDistillation",
    "joint_embedding": "ssl_jax.pretext.joint_embedding:JointEmbedding",
    "image_text": "ssl_jax.pretext.image_text:ImageText",
}
