"""Zero-shot classification: assign each image to the class whose texts are nearest."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from ssl_jax.downstream.evaluator import EvaluationData, Evaluator, Records
from ssl_jax.downstream.evaluators.baselines import majority
from ssl_jax.downstream.evaluators.cross_modal import embed_texts, hit_chance
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.metrics.classification import SEVERAL, check_finite, several_classes
from ssl_jax.errors import UserError
from ssl_jax.reports.records import Record, over_examples


@dataclasses.dataclass(frozen=True)
class ZeroShot(Evaluator):
    """Class names in prompt templates (Radford et al. 2021, section 3.1.4); labels are used only to compute accuracy.

    A class vector is the normalised mean of the unit vectors of all its texts in all templates. A class may have several
    texts: `class_texts`, or else those of the data set, or else the class's name. Yields "accuracy", also under "top5"
    (for more than five classes) and "balanced" (the mean over classes), and the baselines "chance" (a random class) and
    "majority" (the training split's most frequent class). Ties count by their expectation under random tie-breaking.

    Where an image may have several classes, each class ranks the images by their similarity to it: yields
    `metrics.several_classes`, of which "mean_average_precision" is the headline (as for VOC 2007 in Radford et al. 2021,
    table 9, without the interpolation at 11 points).
    """

    templates: tuple = ("{}",)
    class_texts: Mapping | None = None  # class name -> text or texts
    batch_size: int = 256

    requires_labels = ("test",)
    several_classes = True

    def __post_init__(self):
        super().__post_init__()
        if not self.templates:
            raise UserError('templates=(): give at least one, such as ("a photo of a {}.",)')
        for template in self.templates:
            if not isinstance(template, str) or "{}" not in template:
                raise UserError(f"templates: {template!r} has no {{}} for the class to stand in")
        for name, texts in (self.class_texts or {}).items():
            texts = (texts,) if isinstance(texts, str) else texts
            if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
                raise UserError(f"class_texts.{name}={texts!r}: must be a text or several, none of them empty")

    @property
    def representations(self) -> tuple[str, ...]:
        return ("image_embedding",)

    def check(self, data: EvaluationData) -> None:
        """Raise UserError if there are no classes or no texts for them."""
        labels = data.test.labels()
        classes = self.classes(data)
        count = labels.shape[1] if labels.ndim == 2 else labels.max() + 1
        if count > len(classes):
            raise UserError(f"{data.test.source.name} has label {count - 1} but {len(classes)} class names")
        if not labels.any() and labels.ndim == 2:
            raise UserError(f"{data.test.source.name}: no image has a class; nothing can be measured on it")

    def classes(self, data: EvaluationData) -> list[tuple[str, ...]]:
        """Return the texts of each class."""
        names = tuple(data.test.info.classes) or data.classes
        if not names:
            raise UserError(f"{data.test.source.name} has no classes; give a source with labels and class names")
        return texts_of(names, self.class_texts or data.test.info.extra.get("class_texts") or {})

    @property
    def names(self) -> tuple[str, ...]:
        return ("accuracy", "top5/accuracy", "balanced/accuracy", "chance/accuracy", "majority/accuracy", *SEVERAL)

    def __call__(self, encoder: Encoder, data: EvaluationData) -> Records:
        self.check(data)
        train_labels, vectors = data.train.labels(), self.classifier(encoder, data)
        found = encoder.extract(data.test, ("image_embedding",), self.batch_size)
        labels, scores = found["label"], found["image_embedding"] @ vectors.T
        check_finite(scores, "similarities to the classes")
        if labels.ndim == 2:
            yield from several_classes(scores, labels, data.test.info.classes or data.classes, calibrated=False)
            return
        own = scores[np.arange(len(labels)), labels][:, None]
        higher, tied = np.sum(scores > own, axis=1), np.sum(scores == own, axis=1) - 1
        hits = hit_chance(higher, tied, np.ones_like(tied), 1)
        yield over_examples("accuracy", hits, headline=True)
        if len(vectors) > 5:
            yield over_examples("accuracy", hit_chance(higher, tied, np.ones_like(tied), 5), setting="top5")
        of_classes = [hits[labels == c] for c in np.unique(labels)]
        stderr = float(np.sqrt(sum(h.var() / len(h) for h in of_classes)) / len(of_classes))
        balanced = float(np.mean([h.mean() for h in of_classes]))
        yield Record("accuracy", balanced, setting="balanced", n=len(labels), stderr=stderr)
        yield Record("accuracy", 1 / len(vectors), baseline="chance")
        if train_labels is not None:
            yield majority(train_labels, labels)

    def classifier(self, encoder: Encoder, data: EvaluationData) -> Float[np.ndarray, "classes dim"]:
        """Return a unit vector for each class."""
        texts = self.classes(data)
        prompts = [template.replace("{}", text) for own in texts for text in own for template in self.templates]
        vectors = embed_texts(encoder, data.test.info, prompts, self.batch_size)
        counts = [len(own) * len(self.templates) for own in texts]
        means = np.stack([part.mean(0) for part in np.split(vectors, np.cumsum(counts)[:-1])])
        return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def texts_of(names: Sequence[str], given: Mapping) -> list[tuple[str, ...]]:
    """Return each class's texts: those given, or its name with "_" and "-" as spaces."""
    unknown = [name for name in given if name not in names]
    if unknown:
        raise UserError(f"class_texts.{unknown[0]}: there is no such class; the classes are {', '.join(names[:10])}")
    found = [given.get(name, name.replace("_", " ").replace("-", " ")) for name in names]
    return [(text,) if isinstance(text, str) else tuple(text) for text in found]
