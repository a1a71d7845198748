import math

import numpy as np
import pytest
import torch
from skimage import metrics

from tests.learn.denoising_cases import scene
from workers.learn.errors import LearnError
from workers.learn.image_quality import psnr, quality, ssim


def pair(channels: int = 1, height: int = 23, width: int = 19) -> tuple[np.ndarray, np.ndarray]:
    truth = scene(2, height, width, channels, seed=1)
    return truth + 0.1 * np.random.default_rng(0).normal(size=truth.shape), truth


def ssim_by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """Return the index of one channel, window by window, as the paper writes it."""
    at = np.arange(11) - 5
    window = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a = (window * (a - mean_a) ** 2).sum()
            var_b = (window * (b - mean_b) ** 2).sum()
            cov = (window * (a - mean_a) * (b - mean_b)).sum()
            values.append(
                (2 * mean_a * mean_b + 1e-4)
                * (2 * cov + 9e-4)
                / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
            )
    return float(np.mean(values))


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_the_definition_in_the_paper(channels):
    x, truth = pair(channels)
    ours = ssim(torch.as_tensor(x), torch.as_tensor(truth))
    for i in range(2):
        expected = np.mean([ssim_by_definition(x[i, c], truth[i, c]) for c in range(channels)])
        assert float(ours[i]) == pytest.approx(expected, abs=1e-12)


def test_ssim_is_that_of_scikit_image():
    x, truth = pair(3, 40, 31)
    ours = ssim(torch.as_tensor(x), torch.as_tensor(truth))
    for i in range(2):
        theirs = metrics.structural_similarity(
            x[i],
            truth[i],
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert float(ours[i]) == pytest.approx(theirs, abs=1e-10)
        expected = metrics.peak_signal_noise_ratio(truth[i], x[i], data_range=1.0)
        assert float(psnr(torch.as_tensor(x), torch.as_tensor(truth))[i]) == pytest.approx(expected, abs=1e-10)


def test_psnr_of_a_known_error():
    truth = torch.zeros(2, 1, 4, 4)
    x = truth + torch.tensor([0.1, 0.01])[:, None, None, None]
    torch.testing.assert_close(psnr(x, truth), torch.tensor([20.0, 40.0], dtype=torch.float64), rtol=1e-6, atol=0)


def test_a_perfect_copy_is_as_good_as_it_gets():
    truth = torch.as_tensor(scene(3, 16, 16))
    assert quality(truth, truth) == {"psnr": 200.0, "ssim": pytest.approx(1.0)}
    assert math.isfinite(quality(truth, torch.zeros_like(truth))["psnr"])


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (10, 30)])
def test_images_smaller_than_the_window_have_a_similarity_too(shape):
    truth = torch.as_tensor(scene(1, *shape))
    assert float(ssim(truth, truth)) == pytest.approx(1.0)
    assert float(ssim(0.5 * truth, truth)) < 1.0


def test_shapes_must_agree():
    with pytest.raises(LearnError):
        psnr(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 4))
