import numpy as np

from segdet.utils.colormap import as_rgb, colormap, distinct_color, random_color


def test_colors_are_those_of_the_visualizer():
    colors = colormap(rgb=True)
    assert colors.shape == (80, 3) and colors.dtype == np.float32
    assert [tuple(row) for row in colors] == [as_rgb(distinct_color(k)) for k in range(80)]
    assert len(np.unique(colors, axis=0)) == 80
    assert (colormap() == colors[:, ::-1]).all()
    np.testing.assert_allclose(colormap(rgb=True, maximum=1) * 255, colors, rtol=1e-6)


def test_a_random_color_is_one_of_them():
    np.random.seed(0)
    drawn = [random_color(rgb=True, maximum=1) for _ in range(5)]
    assert all((color == colormap(rgb=True, maximum=1)).all(1).any() for color in drawn)
    assert len({tuple(color) for color in drawn}) > 1
