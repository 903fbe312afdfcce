import pytest
import torch

from eckart.linalg.heads import coordinate_scores, value_output

G = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=G)


def rotated(x, pairs, angles):
    first, second = x[:, :pairs], x[:, pairs:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=1)


def test_scores_without_rope_are_the_column_norms_of_the_roots():
    q, k = normal(40, 6), normal(40, 6)
    pairs, rest = coordinate_scores(q.square().mean(0)[None], k.square().mean(0))
    roots = []
    for x in (q, k):
        values, vectors = torch.linalg.eigh(x.T @ x / 40)
        roots.append((vectors * values.sqrt()) @ vectors.T)
    assert pairs.numel() == 0
    torch.testing.assert_close(rest, roots[0].norm(dim=0) * roots[1].norm(dim=0), rtol=1e-10, atol=1e-10)


def test_pair_scores_are_the_same_before_and_after_rotation():
    q, k, angles = normal(40, 6), normal(40, 6), normal(40, 3)
    before, after = (
        coordinate_scores(a.square().mean(0)[None], b.square().mean(0), 3)[0]
        for a, b in ((q, k), (rotated(q, 3, angles), rotated(k, 3, angles)))
    )
    torch.testing.assert_close(before, after, rtol=1e-10, atol=1e-10)


def test_scores_of_a_group_add_up_over_its_query_heads():
    q, k = normal(2, 4).abs(), normal(4).abs()
    pairs, rest = coordinate_scores(q, k, 1)
    assert float(pairs[0]) == pytest.approx(float((q[:, :2].sum() * k[:2].sum()).sqrt()))
    assert float(rest[1]) == pytest.approx(float((q[:, 3].sum() * k[3]).sqrt()))
    other = coordinate_scores(q, k, 1, reimplementation=True)[0]
    assert float(other[0]) == pytest.approx(float((q[:, :2].sum(0) * k[:2]).sum().sqrt()))


@pytest.mark.parametrize("groups", [1, 3])
def test_error_is_the_sum_of_the_squares_left_out_and_joint_is_never_worse(groups):
    x, value, outputs = normal(70, 10), normal(4, 10), normal(groups, 7, 4)
    full = torch.einsum("nd,ghd->ngh", x @ value.T, outputs)

    def error(pair):
        return float((full - torch.einsum("nd,ghd->ngh", x @ pair.value.T, pair.outputs)).square().sum() / 70)

    gram = x.T @ x / 70
    joint, alone = (value_output(value, outputs, gram, 2, mode) for mode in (True, False))
    assert error(joint) == pytest.approx(float(joint.singular_values[2:].square().sum()), rel=1e-8)
    assert error(joint) < error(alone)
    whole = value_output(value, outputs, gram, 4)
    assert error(whole) == pytest.approx(0, abs=1e-16)


def test_sigma_is_split_evenly():
    pair = value_output(normal(4, 10), normal(2, 7, 4), torch.eye(10, dtype=torch.float64), 3)
    stacked = pair.outputs.transpose(1, 2).transpose(0, 1).flatten(1)
    torch.testing.assert_close(stacked @ stacked.T, pair.value @ pair.value.T)


def test_few_tokens():
    x, value, outputs = normal(2, 10), normal(4, 10), normal(2, 7, 4)
    pair = value_output(value, outputs, x.T @ x / 2, 2)
    full = torch.einsum("nd,ghd->ngh", x @ value.T, outputs)
    torch.testing.assert_close(torch.einsum("nd,ghd->ngh", x @ pair.value.T, pair.outputs), full)
