"""Every loss once more in NumPy, in float64 and as the papers write it: image by image.

`views` are lists of [m, d] arrays. Nothing here is fast, shared with the package, or arranged like
it: sums are loops, whitening inverts matrices, and covariances are np.cov.
"""

from itertools import combinations

import numpy as np
import scipy.linalg


def cos(a, b):
    return a @ b / (max(np.linalg.norm(a), 1e-12) * max(np.linalg.norm(b), 1e-12))


def different(x, y):
    return [(u, v) for u in range(len(x)) for v in range(len(y)) if u != v]


def log_softmax(row):
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


def simclr(views, temperature):
    rows = [(v, i) for v in range(len(views)) for i in range(len(views[0]))]
    terms = []
    for v, i in rows:
        e = {
            (w, j): np.exp(cos(views[v][i], views[w][j]) / temperature)
            for w, j in rows
            if (w, j) != (v, i)
        }
        positive = sum(e[w, i] for w in range(len(views)) if w != v)
        terms.append(-np.log(positive / sum(e.values())))
    return np.mean(terms)


def byol(predictions, momentum):
    return sum(
        np.mean([2 - 2 * cos(p, z) for p, z in zip(predictions[u], momentum[v], strict=True)])
        for u, v in different(predictions, momentum)
    )


def simsiam(predictions, embeddings):
    return np.mean(
        [
            -cos(p, z)
            for u, v in different(predictions, embeddings)
            for p, z in zip(predictions[u], embeddings[v], strict=True)
        ]
    )


def mocov3(predictions, momentum, temperature):
    total = 0
    for u, v in different(predictions, momentum):
        for i, p in enumerate(predictions[u]):
            logits = np.array([cos(p, z) / temperature for z in momentum[v]])
            total -= 2 * temperature * log_softmax(logits)[i] / len(predictions[u])
    return total


def sinkhorn(scores, epsilon, num_iterations):
    q = np.exp(scores / epsilon)
    for _ in range(num_iterations):
        for k in range(q.shape[1]):
            q[:, k] /= q[:, k].sum()
        for i in range(q.shape[0]):
            q[i] /= q[i].sum()
    return q


def swav(scores, assignments, temperature):
    return np.mean(
        [
            -sum(q * log_softmax(s / temperature))
            for u, v in different(scores, assignments)
            for s, q in zip(scores[u], assignments[v], strict=True)
        ]
    )


def dino(student, teacher, center, teacher_temperature, student_temperature):
    return np.mean(
        [
            -np.exp(log_softmax((t - center) / teacher_temperature))
            @ log_softmax(s / student_temperature)
            for u, v in different(student, teacher)
            for s, t in zip(student[u], teacher[v], strict=True)
        ]
    )


def barlow_twins(views, off_diagonal_weight, scale):
    first, second = ((z - z.mean(0)) / np.sqrt(z.var(0, ddof=0) + 1e-5) for z in views)
    total = 0
    for i in range(first.shape[1]):
        for j in range(first.shape[1]):
            c = np.mean(first[:, i] * second[:, j])
            total += (c - 1) ** 2 if i == j else off_diagonal_weight * c**2
    return scale * total


def vicreg(views, invariance_weight, variance_weight, covariance_weight):
    m, d = views[0].shape
    total = invariance_weight * np.sum((views[0] - views[1]) ** 2) / (m * d)
    for z in views:
        covariance = np.cov(z.T)
        for i in range(d):
            std = np.sqrt(covariance[i, i] + 1e-4)
            total += variance_weight * max(0, 1 - std) / d
            for j in range(d):
                if i != j:
                    total += covariance_weight * covariance[i, j] ** 2 / d
    return total


def mean_distance(views):
    return np.mean(
        [2 - 2 * cos(a, b) for x, y in combinations(views, 2) for a, b in zip(x, y, strict=True)]
    )


def wmse(views, permutations, slice_size, epsilon):
    terms = []
    for permutation in permutations:
        whitened = [np.empty_like(z) for z in views]
        for start in range(0, len(permutation), slice_size):
            rows = permutation[start : start + slice_size]
            for z, out in zip(views, whitened, strict=True):
                sigma = (1 - epsilon) * np.cov(z[rows].T) + epsilon * np.eye(z.shape[1])
                whitening = np.linalg.inv(np.linalg.cholesky(sigma))
                for i in rows:
                    out[i] = whitening @ (z[i] - z[rows].mean(0))
        terms.append(mean_distance(whitened))
    return np.mean(terms)


def cw_rgp(views, permutations, channel_permutations, slice_size, groups, epsilon):
    terms = []
    for permutation, orders in zip(permutations, channel_permutations, strict=True):
        whitened = [np.empty_like(z) for z in views]
        for s in range(len(orders)):
            rows = permutation[s * slice_size : (s + 1) * slice_size]
            for z, out, order in zip(views, whitened, orders[s], strict=True):
                centered = z[rows] - z[rows].mean(1, keepdims=True)
                for channels in np.split(order, groups):
                    x = centered[:, channels]
                    sigma = x @ x.T / (len(channels) - 1)
                    sigma = (1 - epsilon) * sigma + epsilon * np.eye(len(rows))
                    whitening = np.linalg.inv(scipy.linalg.sqrtm(sigma))
                    out[np.ix_(rows, channels)] = whitening @ x
        terms.append(mean_distance(whitened))
    return np.mean(terms)


def intl(views, trade_off, num_iterations):
    whitened = []
    for z in views:
        x = np.stack([row - row.mean() for row in z])
        sigma = np.cov(z)
        projection = np.eye(len(z))
        for _ in range(num_iterations):
            cube = np.linalg.matrix_power(projection, 3)
            projection = 1.5 * projection - 0.5 * cube @ (sigma / np.trace(sigma))
        whitened.append(projection / np.sqrt(np.trace(sigma)) @ x)
    trace = [sum((np.var(row, ddof=1) - 1) ** 2 for row in t) for t in whitened]
    beta = (np.log2(len(views[0])) - 3) / 100 if trade_off is None else trade_off
    return np.mean(
        [
            mean_distance([whitened[0], whitened[v]]) + beta * (trace[0] + trace[v])
            for v in range(1, len(views))
        ]
    )


def mec(predictions, momentum, inverse_lambda, order):
    m, d = predictions[0].shape
    inverse_lambda = 64 * m / d if inverse_lambda is None else inverse_lambda
    terms = []
    for u, v in different(predictions, momentum):
        c = np.array([[cos(p, z) for p in predictions[u]] for z in momentum[v]]) / inverse_lambda
        logarithm = sum(
            (-1) ** (k + 1) * np.linalg.matrix_power(c, k) / k for k in range(1, order + 1)
        )
        terms.append(-inverse_lambda / m * np.trace(logarithm))
    return np.mean(terms)
