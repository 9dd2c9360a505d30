# %% [markdown]
# # Exact nearest neighbours
# The search that training uses, on its own: in float32, as fast as a matmul, and right where a matmul is wrong. NumPy
# computes the truth here, in float64 and from differences.

# %%
import numpy as np
import torch

import imletriton

rng = np.random.default_rng(0)
queries = rng.standard_normal((50, 64)).astype(np.float32) * 1e-2 + 1e4  # close together, far from the origin
pool = rng.standard_normal((2000, 64)).astype(np.float32) * 1e-2 + 1e4
truth = np.stack([np.square(pool.astype(np.float64) - query).sum(1) for query in queries.astype(np.float64)])

# %% [markdown]
# The nearest sample of each query. The expansion |x|² + |y|² - 2xy, which fast searches use, loses all digits here.

# %%
result = imletriton.nearest(queries, pool)  # .sq_distance float32 [50], .index int64 [50]
error = np.abs(result.sq_distance.numpy() / truth.min(1) - 1).max()
print(f"imletriton finds {(result.index.numpy() == truth.argmin(1)).mean():.0%}, relative error {error:.1e}")
x, y = torch.from_numpy(queries), torch.from_numpy(pool)
expanded = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
print(f"|x|² + |y|² - 2xy finds {(expanded.argmin(1).numpy() == truth.argmin(1)).mean():.0%}")
assert np.array_equal(result.index.numpy(), truth.argmin(1)) and error < 1e-5

# %% [markdown]
# The three nearest, nearest first; and how many samples lie within a radius of each query.

# %%
three = imletriton.nearest(queries, pool, k=3)
assert np.array_equal(three.index.numpy(), np.argsort(truth, 1, kind="stable")[:, :3])  # ties go to the lowest index
radius = float(np.sqrt(np.quantile(truth, 0.01)))
close = imletriton.within(queries, pool, radius)  # .count int64 [50]; .pairs int64 [p, 2], computed when asked for
assert np.array_equal(close.count.numpy(), (truth <= radius**2).sum(1))
print(f"{close.count.sum()} pairs are at most {radius:.4f} apart")

# %% [markdown]
# A pool that does not fit into memory is searched in chunks; `index` counts over all of them. Samples closer than
# `reject_radius` to any query are left out, as in RS-IMLE.

# %%
search = imletriton.NearestSearch(queries, reject_radius=radius)
for chunk in np.array_split(pool, 4):
    search.update(chunk)
accepted = (truth >= radius**2).all(0)
assert np.array_equal(search.index.numpy(), np.where(accepted, truth, np.inf).argmin(1))
print(f"{search.accepted} of {len(pool)} samples may be selected, {search.rejected} are too close to a query")
