"""What every low-rank optimiser does: which parameters move, state that comes back, bytes, trainers, bad input."""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.errors import InputError
from eckart.optim import DCTAdamW, GaLore, Trion, hidden_groups

OPTIMIZERS: dict[str, Any] = {
    "dct": lambda params, **o: DCTAdamW(params, **{"lr": 0.01, "rank": 2} | o),
    "dct-int8": lambda params, **o: DCTAdamW(params, **{"lr": 0.01, "rank": 2, "error_feedback": "int8"} | o),
    "dct-full": lambda params, **o: DCTAdamW(params, **{"lr": 0.01, "rank": 2, "error_feedback": "full"} | o),
    "dct-gap": lambda params, **o: DCTAdamW(
        params, **{"lr": 0.01, "rank": 2, "update_gap": 3, "basis": "random_qr"} | o
    ),
    "trion": lambda params, **o: Trion(params, **{"lr": 0.01, "rank": 2} | o),
    "galore": lambda params, **o: GaLore(params, **{"lr": 0.01, "rank": 2, "update_gap": 2} | o),
}
every = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
basis_optimizers = pytest.mark.parametrize("make", [DCTAdamW, Trion])


class Net(nn.Module):
    """Layers of several shapes: left and right, a convolution, vectors, a scalar, one that gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 6, 2)
        self.up, self.square, self.down = nn.Linear(6, 10), nn.Linear(10, 10), nn.Linear(10, 4)
        self.scale, self.unused = nn.Parameter(torch.ones(())), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.square(self.up(self.conv(x).mT)))) * self.scale


def net(dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


def backward(model: nn.Module, seed: int) -> Tensor:
    p = next(model.parameters())
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(seed)).to(p.dtype)
    loss = (model(x) - 1).square().mean()
    loss.backward()
    return loss


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for t in steps:
        optimizer.zero_grad()
        losses.append(float(backward(model, t).detach()))
        optimizer.step()
    return losses


def values(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@every
def test_all_that_has_a_gradient_moves_and_gradients_stay(make: Any) -> None:
    model = net()
    optimizer = make(model.parameters())
    backward(model, 0)
    before = {name: (p.detach().clone(), p.grad) for name, p in model.named_parameters()}
    kept = {name: grad.clone() for name, (_, grad) in before.items() if grad is not None}
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0]) == name.startswith("unused"), name
        assert p.grad is before[name][1]
        assert p.grad is None or torch.equal(p.grad, kept[name])
    assert optimizer.state[model.conv.weight]["step"] == 1


@every
def test_training_lowers_the_loss(make: Any) -> None:
    model = net(torch.float32)
    losses = train(model, make(model.parameters(), lr=0.02), range(40))
    assert losses[-1] < 0.2 * losses[0]


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_comes_back_bit_by_bit_through_a_file_read_without_unpickling(
    make: Any, dtype: torch.dtype
) -> None:
    model = net(dtype)
    optimizer = make(model.parameters())
    train(model, optimizer, range(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = copy.deepcopy(model)
    resumed = make(again.parameters())
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        for name, tensor in optimizer.state.get(p, {}).items():
            assert resumed.state[q][name].dtype == tensor.dtype and torch.equal(
                resumed.state[q][name], tensor
            )
            assert resumed.state[q][name].data_ptr() != tensor.data_ptr()
    train(model, optimizer, range(3, 6))
    train(again, resumed, range(3, 6))
    assert torch.equal(values(model), values(again))


@every
def test_state_bytes_are_counted_before_the_first_step(make: Any) -> None:
    model = net(torch.float32)
    optimizer = make([p for name, p in model.named_parameters() if "unused" not in name])
    counted = optimizer.state_bytes()
    assert not optimizer.state
    train(model, optimizer, range(1))
    held = [t for state in optimizer.state.values() for t in state.values()]
    assert counted == sum(t.numel() * t.element_size() for t in held)
    assert all(type(t) is Tensor for t in held)


@pytest.mark.parametrize("shape", [(20, 12), (12, 20)])
def test_state_bytes_are_the_formula(shape: tuple[int, int]) -> None:
    p, (rows, columns), r = torch.zeros(shape, requires_grad=True), shape, 5
    moments = 4 * 2 * 20 * r
    for options, wanted in (
        ({}, moments + 4 * r),
        ({"error_feedback": "full"}, moments + 4 * r + 4 * rows * columns),
        ({"error_feedback": "int8"}, moments + 4 * r + rows * columns + 4 * 2 * rows),
    ):
        assert DCTAdamW([p], rank=r, **options).state_bytes() == wanted + 4, options
    assert Trion([p], rank=r).state_bytes() == 4 * rows * columns + 4 * r + 4
    assert GaLore([p], rank=r).state_bytes() == moments + 4 * 12 * r + 4
    assert DCTAdamW([p], rank=r, max_shape=20).state_bytes() == 4 * 2 * rows * columns + 4


@every
def test_half_precision_keeps_its_state_in_float32(make: Any) -> None:
    model = net(torch.bfloat16)
    optimizer = make(model.parameters())
    train(model, optimizer, range(2))
    state = optimizer.state[model.square.weight]
    assert {t.dtype for t in state.values()} <= {torch.float32, torch.int32, torch.uint8}
    assert model.square.weight.dtype == torch.bfloat16 and bool(values(model).isfinite().all())


def test_rank_ratio_is_a_share_of_each_shorter_side() -> None:
    shapes = [(8, 20), (20, 10), (3, 3)]
    for make in (DCTAdamW, Trion, GaLore):
        params = [torch.zeros(s, requires_grad=True) for s in shapes]
        optimizer = make(params, rank_ratio=0.25)
        group = optimizer.param_groups[0]
        assert [optimizer.rank_of(group, p) for p in params] == [2, 2, 1]


def test_galore_projects_on_the_leading_singular_vectors_and_keeps_them() -> None:
    for shape in ((12, 8), (8, 12)):
        p = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        optimizer = GaLore([p], lr=1.0, rank=3, update_gap=2)
        kept = []
        for t in range(3):
            p.grad = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(t))
            before = p.detach().clone()
            optimizer.step()
            kept.append(optimizer.state[p]["projector"].clone())
            if t == 0:
                matrix = p.grad if shape[0] >= shape[1] else p.grad.mT
                vh = torch.linalg.svd(matrix, full_matrices=False).Vh[:3]
                torch.testing.assert_close(kept[0] @ kept[0].mT, vh.mT @ vh)
                moved = before - p.detach()
                coordinates = (moved if shape[0] >= shape[1] else moved.mT) @ kept[0]
                # the first step of AdamW is the sign
                torch.testing.assert_close(coordinates.abs(), torch.full((12, 3), 0.25, dtype=torch.float64))
        assert torch.equal(kept[1], kept[2]) and not torch.equal(kept[0], kept[1])


@every
@pytest.mark.compiled
def test_compiled_updates_are_the_eager_ones(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced whole, every shape; the code generator is torch's business."""
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **o: original(f, **o, backend="aot_eager"))
    from eckart.optim._base import _compiled

    _compiled.cache_clear()
    eager, compiled = net(), net()
    train(eager, make(eager.parameters()), range(3))
    train(compiled, make(compiled.parameters(), compile=True), range(3))
    _compiled.cache_clear()
    torch.testing.assert_close(values(compiled), values(eager), rtol=0, atol=1e-10)


@every
def test_closures_schedulers_and_clipping(make: Any) -> None:
    model = net()
    optimizer = make(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.0 if t else 1.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = backward(model, 0)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        return loss

    assert float(optimizer.step(closure).detach()) > 0
    schedule.step()
    before = values(model)
    optimizer.step(closure)
    assert torch.equal(values(model), before)
    squares = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
    assert math.isclose(float(sum(squares)), 0.01, rel_tol=1e-3)


@every
def test_trainer_runs_it_and_resumes_to_the_bit(make: Any, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 6)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"loss": (self.b(torch.tanh(self.a(x))) - x).square().mean()}

    data = [{"x": torch.randn(6, generator=torch.Generator().manual_seed(i))} for i in range(16)]

    def run(steps: int, resume: bool) -> Tensor:
        model = Model()
        arguments = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=4,
            max_steps=6,
            save_steps=3,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(model, arguments, train_dataset=data, optimizers=(make(model.parameters()), None))
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3") if resume else None)
        return values(model)

    assert torch.equal(run(6, False), run(6, True))


def test_hidden_groups_tell_matrices_from_tables_and_vectors() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    for tied in (True, False):
        config = LlamaConfig(
            vocab_size=32,
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=tied,
        )
        model = LlamaForCausalLM(config)
        hidden, tables, vectors = hidden_groups(model, weight_decay=0.3)
        assert [len(g["params"]) for g in (hidden, tables, vectors)] == [7, 1 if tied else 2, 3]
        assert (hidden["weight_decay"], tables["weight_decay"], vectors["weight_decay"]) == (0.3, 0.3, 0.0)
        assert "low_rank" not in hidden and not tables["low_rank"] and not vectors["low_rank"]
        assert len({id(p) for g in (hidden, tables, vectors) for p in g["params"]}) == len(
            list(model.parameters())
        )
        Trion([hidden, tables, vectors], rank=4)
    with pytest.raises(InputError, match="no hidden matrix"):
        hidden_groups(nn.Embedding(3, 2))


P = torch.zeros(6, 4, requires_grad=True)


@every
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rank": 5},
            r"rank=5: params\[0\] of shape \(6, 4\) holds at most 4; lower rank, or give rank_ratio",
        ),
        ({"rank": 0}, "rank is 0: give a whole number of at least 1"),
        ({"rank": 1.5}, "rank is 1.5: give a whole number of at least 1"),
        ({"rank": None}, "rank=None and rank_ratio=None: give one"),
        ({"rank_ratio": 0.5}, "rank=2 and rank_ratio=0.5: give one"),
        ({"rank": None, "rank_ratio": 0}, "rank_ratio is 0: give a share in"),
        ({"rank": None, "rank_ratio": 1.5}, "rank_ratio is 1.5: give a share in"),
        ({"lr": -1.0}, "lr is -1.0: give a number of at least 0"),
        ({"lr": math.nan}, "lr is nan: give a number"),
        ({"weight_decay": math.inf}, "weight_decay is inf: give a number of at least 0"),
        ({"eps": -1e-8}, "eps is -1e-08: give a number of at least 0"),
        ({"betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\): give two numbers in \[0, 1\)"),
        ({"max_shape": 0}, "max_shape is 0: give a whole number of at least 1"),
    ],
)
def test_bad_options_are_refused(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make([P], **options)


@basis_optimizers
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"basis": "dct4"}, "basis='dct4': choose one of dct2, dct3, random_qr"),
        ({"transform": "fast"}, "transform='fast': choose one of auto, matmul, fft"),
        ({"norm": 3}, "norm=3: choose one of 1, 2"),
        ({"basis": "random_qr", "transform": "fft"}, "only the cosine bases have a fast transform"),
    ],
)
def test_bad_bases_are_refused(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make([P], rank=2, **options)


def test_bad_options_of_one_optimizer_are_refused() -> None:
    with pytest.raises(InputError, match="error_feedback='int4': choose one of None, full, int8"):
        DCTAdamW([P], rank=2, error_feedback="int4")
    with pytest.raises(InputError, match="update_gap is 0: give a whole number of at least 1"):
        DCTAdamW([P], rank=2, update_gap=0)
    with pytest.raises(InputError, match="scale='big': choose one of kj, none, kimi, dion"):
        Trion([P], rank=2, scale="big")
    with pytest.raises(InputError, match=r"momentum is 1\.5: give a share in"):
        Trion([P], rank=2, momentum=1.5)
    with pytest.raises(InputError, match="ns_steps is 0: give a whole number"):
        Trion([P], rank=2, ns_steps=0)
    with pytest.raises(InputError, match="adamw_scale is -1: give a number"):
        Trion([P], rank=2, adamw_scale=-1)


@every
def test_bad_parameters_are_refused_and_change_nothing(make: Any) -> None:
    with pytest.raises(InputError, match=r"params\[1\] of shape \(6, 4\) is given twice"):
        make([P, P])
    optimizer = make([P])
    with pytest.raises(InputError, match="is given twice"):
        optimizer.add_param_group({"params": [P]})
    with pytest.raises(InputError, match=r"params\[0\] is of torch.complex64"):
        optimizer.add_param_group({"params": [torch.zeros(3, 3, dtype=torch.complex64, requires_grad=True)]})
    with pytest.raises(InputError, match="lr is -2: give a number of at least 0"):
        optimizer.add_param_group({"params": [torch.zeros(3, requires_grad=True)], "lr": -2})
    assert len(optimizer.param_groups) == 1
    table = nn.Embedding(9, 4, sparse=True)
    optimizer.add_param_group({"params": table.weight})
    P.grad = torch.ones(6, 4)
    table(torch.tensor([1])).sum().backward()
    before = P.detach().clone()
    with pytest.raises(InputError, match=r"shape \(9, 4\) is sparse"):
        optimizer.step()
    assert torch.equal(P, before)
    P.grad = None


def test_a_state_of_other_options_or_shapes_is_refused_and_nothing_changes() -> None:
    model, other = net(), net()
    optimizer, fresh = DCTAdamW(model.parameters(), rank=2), DCTAdamW(other.parameters(), rank=2)
    train(model, optimizer, range(1))
    state = optimizer.state_dict()
    for options, message in (
        ({"rank": 3}, "the state's group 0 has rank=2, this optimizer's 3"),
        ({"rank": 2, "basis": "dct2"}, "the state's group 0 has basis='dct3', this optimizer's 'dct2'"),
        ({"rank": 2, "error_feedback": "int8"}, "error_feedback=None, this optimizer's 'int8'"),
    ):
        with pytest.raises(InputError, match=message):
            DCTAdamW(other.parameters(), **options).load_state_dict(state)
    with pytest.raises(InputError, match="other parameter groups"):
        DCTAdamW([P], rank=2).load_state_dict(state)
    with pytest.raises(InputError, match="the state's group 0 has low_rank=None"):
        fresh.load_state_dict(torch.optim.AdamW(model.parameters()).state_dict())
    for name, value in (("m", torch.zeros(2, 2)), ("extra", torch.zeros(1))):
        wrong = copy.deepcopy(state)
        wrong["state"][0][name] = value
        with pytest.raises(InputError, match="the state of parameter 0 has the shapes"):
            fresh.load_state_dict(wrong)
    assert not fresh.state
    fresh.load_state_dict(state)
    assert len(fresh.state) == len(optimizer.state)
