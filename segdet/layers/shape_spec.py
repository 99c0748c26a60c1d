from dataclasses import dataclass


@dataclass
class ShapeSpec:
    """What is known of a feature map before there is one; None where it is not known.

    Attributes:
        channels: number of channels.
        height: rows.
        width: columns.
        stride: input pixels per cell of the map.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
