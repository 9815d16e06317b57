"""What the training of a comparison may be besides its length: settings that all methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import MinLen

from ...settings import Count, Name, Natural, NonNegative, Positive, Share

__all__ = ["Recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How every method of a comparison is trained; the defaults are Adam, a cosine schedule to zero, and nothing else.

    Attributes:
        optimizer: one of adam, adamw, and sgd with Nesterov momentum of 0.9.
        weight_decay: for weight matrices and kernels; vectors and single numbers have none.
        warmup: share of the training in which the learning rate rises from zero.
        schedule: of the learning rate after that: cosine, which ends at zero, constant, or step, a tenth by each third.
        augmentation: of training images; none or crop-flip, up to an eighth of a side, and half of them mirrored.
        rotation_classes: whether images turned by 90, 180 and 270 degrees are further training classes.
        subclasses: into how many subclasses each training class is divided for the episodes; 0 for none.
        subclass_encoder: checkpoint of the network by whose features; {seed} in it stands for the seed.
        encode_once: whether a frozen encoder or teacher reads each training sample once, as it is, before training, and
            not each time anew, as it is augmented.
        class_batch: images per iteration that are classified among all training classes; 0 for none.
        class_weight: weight of their loss beside the mean loss of the episodes.
        classifier: what classifies them: cosine, with a learned centre and scale, or linear.
        label_smoothing: of their loss.
        train_shots: support samples per class in training, one after the other by iteration; shots if not given.
        average: decay of the moving average of weights that is validated and tested, such as 0.99; none if not given.
        pretrained: checkpoint whose backbone every method starts from, or several, separated by commas, for the members
            of the backbone ensemble; {seed} in it stands for the seed.
        backbone_lr: learning rate of the backbone, in units of the method's own.
    """

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: NonNegative = 0.0
    warmup: Share = 0.0
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    augmentation: Literal["none", "crop-flip"] = "none"
    rotation_classes: bool = False
    subclasses: Natural = 0
    subclass_encoder: Name | None = None
    encode_once: bool = False
    class_batch: Natural = 0
    class_weight: Positive = 1.0
    classifier: Literal["cosine", "linear"] = "cosine"
    label_smoothing: Share = 0.0
    train_shots: Annotated[tuple[Count, ...], MinLen(1)] | None = None
    average: Share | None = None
    pretrained: Name | None = None
    backbone_lr: NonNegative = 1.0
