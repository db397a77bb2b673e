"""What figures of several seeds say, in a sentence each."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats


def spread(values: Sequence[float]) -> str:
    """Mean and, of several values, the deviation of the sample."""
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}"


def verdict(name: str, changed: Sequence[float], before: Sequence[float]) -> str:
    """A sentence on the differences of paired seeds: more than noise when the 95 % interval of
    their mean (Student's t) leaves 0 out."""
    differences = np.asarray(changed) - np.asarray(before)
    mean, count = float(differences.mean()), len(differences)
    if count < 2:
        return f"{name}: {mean:+.1f} with one seed, which says nothing about noise"
    half = float(stats.t.ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count))
    word = "within the noise of seeds"
    if abs(mean) > half:
        word = "helps" if mean > 0 else "harms"
    pooled = _pooled([changed, before])
    return (
        f"{name}: {mean:+.1f}, 95 % interval {mean - half:+.1f} to {mean + half:+.1f} "
        f"({count} paired seeds; deviation of seeds {pooled:.1f}): {word}"
    )


def spread_verdict(name: str, values: Mapping[str, Sequence[float]]) -> str:
    """A sentence on the best and the worst of several methods, picked after the fact, by Tukey's
    range test, which allows for the picking. values: method -> figures, as many seeds each."""
    means = {method: float(np.mean(own)) for method, own in values.items()}
    best, worst = max(means, key=means.get), min(means, key=means.get)
    text = f"{name}: best {best} ({means[best]:.1f}), worst {worst} ({means[worst]:.1f})"
    count, methods = len(values[best]), len(values)
    if count < 2:
        return f"{text} with one seed, which says nothing about noise"
    noise = _pooled(list(values.values())) / np.sqrt(count)
    width = means[best] - means[worst]
    p = 1.0 if width == 0 else 0.0
    if noise > 0:
        p = float(stats.studentized_range.sf(width / noise, methods, methods * (count - 1)))
    word = "more than" if p < 0.05 else "within"
    return f"{text}, {word} the noise of {count} seeds (Tukey p = {p:.2f})"


def _pooled(values: Sequence[Sequence[float]]) -> float:
    """The deviation of seeds within a method."""
    return float(np.sqrt(np.mean([np.var(own, ddof=1) for own in values])))
