"""The transformers face of S4D: starting weights, files, masks, streaming, losses, `Trainer`, and bad input."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from eckart import InputError
from eckart.layers import (
    S4D,
    S4DBlock,
    S4DConfig,
    S4DForSequenceClassification,
    S4DKernel,
    S4DModel,
    S4DTrainer,
    param_groups,
)

LENGTH = 16


def tiny(cls: type[Any] = S4DForSequenceClassification, **options: Any) -> Any:
    torch.manual_seed(0)
    settings = {"hidden_size": 8, "num_hidden_layers": 2, "d_state": 8, "dropout": 0.0, "num_labels": 3}
    return cls(S4DConfig(**(settings | options))).eval()


def signals(rows: int = 4, *channels: int) -> Tensor:
    return torch.randn(rows, LENGTH, *channels, generator=torch.Generator().manual_seed(1))


# Starting weights


@pytest.mark.parametrize("cls", [S4DModel, S4DForSequenceClassification])
def test_transformers_leaves_the_start_of_the_layers_alone(cls: type[Any]) -> None:
    model = tiny(cls, init="lin", dt_min=0.01, dt_max=0.02)
    blocks = (model if cls is S4DModel else model.s4d).layers
    for block in blocks:
        kernel = block.layer.kernel
        assert torch.allclose(kernel.A_imag[:, 1:], math.pi * torch.arange(1, 4.0).expand(8, -1))
        assert torch.allclose(kernel.A_real.exp(), torch.tensor(0.5))
        assert ((kernel.inv_dt.exp() >= 0.01) & (kernel.inv_dt.exp() <= 0.02)).all()
        assert torch.equal(kernel.B[..., 0], torch.ones(1, 8, 4))
        assert 0.5 < kernel.C.std() < 0.9 and block.layer.D.std() > 0.3
        assert block.layer.output_linear.bias.abs().min() > 0
    assert len({float(block.layer.D.detach().sum()) for block in blocks}) == 2


def test_every_option_of_a_layer_is_one_of_the_config_and_reaches_it() -> None:
    offered = inspect.signature(S4DConfig.__init__).parameters
    for layer, given in (
        (S4DBlock, {"d_model"}),
        (S4D, {"d_model", "max_length"}),
        (S4DKernel, {"d_model", "channels"}),
    ):
        options = inspect.signature(layer.__init__).parameters.keys() - {"self", "options"} - given
        assert options <= offered.keys()
    slow, fast = (tiny(init="lin", imag_scale=scale).s4d.layers[0].layer.kernel.A_imag for scale in (1, 2))
    assert torch.allclose(2 * slow[:, 1:], fast[:, 1:])
    assert len(tiny(real_random=True).s4d.layers[0].layer.kernel.A_real.unique()) > 1
    assert torch.allclose(tiny(real_scale=3.0).s4d.layers[0].layer.kernel.A_real.exp(), torch.tensor(1.5))


def test_a_start_is_drawn_from_the_seed() -> None:
    first, second = tiny().state_dict(), tiny().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_size_of_a_number_survives_the_first_norm() -> None:
    """Without a bias in the encoder, x and 2x would be the same after the first layer norm."""
    model = tiny(S4DModel)
    assert not torch.allclose(
        *(model(input_values=x * signals()).last_hidden_state for x in (1, 2)), atol=0.05
    )


@pytest.mark.parametrize("lost", ["layers.1.layer.kernel.", "layers.1.layer.kernel.C", "layers.0.layer.D"])
def test_only_what_a_checkpoint_lacks_is_drawn_and_as_a_layer_draws_it(tmp_path: Path, lost: str) -> None:
    model = tiny(init="lin")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if lost not in name}
    save_file(kept, file, metadata={"format": "pt"})
    loaded, info = S4DForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    state = loaded.state_dict()
    assert set(info["missing_keys"]) == state.keys() - kept.keys() != set()
    assert all(torch.equal(state[name], tensor) for name, tensor in kept.items())
    kernel = loaded.s4d.layers[1].layer.kernel
    if lost.endswith("kernel."):
        assert torch.allclose(kernel.A_imag[:, 1:], math.pi * torch.arange(1, 4.0).expand(8, -1))
        assert torch.allclose(kernel.A_real.exp(), torch.tensor(0.5))
        assert ((kernel.inv_dt.exp() >= 1e-3) & (kernel.inv_dt.exp() <= 0.1)).all()
    for drawn in (kernel.C, loaded.s4d.layers[0].layer.D):
        assert drawn.isfinite().all() and drawn.abs().max() < 6


# Files


@pytest.mark.parametrize(
    "options", [{}, {"vocab_size": 11, "bidirectional": True}, {"init": "real", "norm": "rms"}]
)
def test_saved_and_loaded_is_bit_identical(tmp_path: Path, options: dict[str, Any]) -> None:
    model = tiny(pooling="last", **options)
    inputs = (
        {"input_ids": torch.randint(0, 11, (3, 7))}
        if options.get("vocab_size")
        else {"input_values": signals()}
    )
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is S4DForSequenceClassification
    assert type(AutoConfig.from_pretrained(tmp_path)) is S4DConfig
    kept, given = loaded.config.to_dict(), model.config.to_dict()
    assert kept.pop("_name_or_path") == str(tmp_path) and given.pop("_name_or_path") == ""
    assert kept == given
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    backbone = AutoModel.from_pretrained(tmp_path)
    assert type(backbone) is S4DModel
    assert torch.equal(backbone(**inputs).last_hidden_state, model.s4d(**inputs).last_hidden_state)


def test_half_precision_keeps_the_systems_in_single(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    half = S4DForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, parameter in half.named_parameters():
        assert parameter.dtype == (torch.float32 if ".kernel." in name else torch.bfloat16), name
    logits = half(input_values=signals()).logits
    assert logits.dtype == torch.bfloat16
    assert torch.allclose(logits.float(), model(input_values=signals()).logits, atol=0.05)


# Masks and pooling


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_padding_on_the_right_changes_nothing(bidirectional: bool, pooling: str) -> None:
    model = tiny(bidirectional=bidirectional, pooling=pooling).double()
    values, lengths = signals().double(), (16, 5, 1, 9)
    mask = torch.tensor([[int(t < length) for t in range(LENGTH)] for length in lengths])
    padded = values.masked_fill(mask == 0, math.nan)
    logits = model(input_values=padded, attention_mask=mask).logits
    alone = [
        model(input_values=row[None, :length]).logits[0] for row, length in zip(values, lengths, strict=True)
    ]
    assert torch.allclose(logits, torch.stack(alone), atol=1e-10)


def test_pooling_is_the_mean_or_the_last_step() -> None:
    for pooling in ("mean", "last"):
        model = tiny(pooling=pooling)
        hidden = model.s4d(input_values=signals()).last_hidden_state
        pooled = hidden.mean(1) if pooling == "mean" else hidden[:, -1]
        assert torch.allclose(model(input_values=signals()).logits, model.classifier(pooled), atol=1e-6)


# Streaming


@pytest.mark.parametrize(
    "options", [{}, {"num_channels": 2}, {"vocab_size": 11}, {"init": "real"}, {"prenorm": False}]
)
@pytest.mark.parametrize("rate", [1.0, 2.0])
def test_steps_and_chunks_give_what_one_pass_gives(options: dict[str, Any], rate: float) -> None:
    model = tiny(S4DModel, **options).double()
    if "vocab_size" in options:
        name, inputs = "input_ids", torch.randint(0, 11, (2, LENGTH))
    else:
        name, inputs = "input_values", signals(2, *([2] if "num_channels" in options else [])).double()
    whole = model(**{name: inputs}, rate=rate, use_cache=True)
    states, hidden = model.initial_state(2), []
    for t in range(LENGTH):
        vector, states = model.step(inputs[:, t], states, rate)
        hidden.append(vector)
    assert torch.allclose(torch.stack(hidden, 1), whole.last_hidden_state, atol=1e-11)
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(states, whole.states, strict=True))

    start = model(**{name: inputs[:, :5]}, rate=rate, use_cache=True)
    rest = model(**{name: inputs[:, 5:]}, states=start.states, rate=rate)
    assert rest.states is None
    chunks = torch.cat([start.last_hidden_state, rest.last_hidden_state], 1)
    assert torch.allclose(chunks, whole.last_hidden_state, atol=1e-11)


# Outputs, losses, precision


def test_outputs_are_those_of_transformers() -> None:
    model = tiny()
    out = model(input_values=signals(), output_hidden_states=True)
    assert len(out.hidden_states) == 3 and out.loss is None
    backbone = model.s4d(input_values=signals(), output_hidden_states=True)
    assert torch.equal(backbone.hidden_states[-1], backbone.last_hidden_state)
    assert torch.equal(backbone.hidden_states[0], model.get_input_embeddings()(signals().unsqueeze(-1)))
    as_tuple = model(input_values=signals(), labels=torch.zeros(4, dtype=torch.long), return_dict=False)
    assert isinstance(as_tuple, tuple) and [x.shape for x in as_tuple] == [(), (4, 3)]
    model.config.output_hidden_states = True
    assert model(input_values=signals()).hidden_states is not None


@pytest.mark.parametrize(
    ("problem", "labels", "loss"),
    [
        ("single_label_classification", torch.tensor([0, 2, 1, 1]), nn.functional.cross_entropy),
        ("multi_label_classification", torch.eye(4, 3), nn.functional.binary_cross_entropy_with_logits),
        ("regression", torch.randn(4, 3), nn.functional.mse_loss),
    ],
)
def test_loss_follows_the_problem_type(problem: str, labels: Tensor, loss: Any) -> None:
    model = tiny(problem_type=problem)
    out = model(input_values=signals(), labels=labels)
    assert torch.allclose(out.loss, loss(out.logits, labels))


def test_one_label_is_regression() -> None:
    model, labels = tiny(num_labels=1), torch.randn(4)
    out = model(input_values=signals(), labels=labels)
    assert torch.allclose(out.loss, (out.logits[:, 0] - labels).square().mean())


def gradients(model: Any) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(3)
    model(input_values=signals(), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = tiny(dropout=0.3).train()
    plain = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    called = 0
    inner = model.s4d._gradient_checkpointing_func

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal called
        called += 1
        return inner(*args, **kwargs)

    model.s4d._gradient_checkpointing_func = counted
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(gradients(model), plain, strict=True))
    assert called == 2


def test_bfloat16_autocast_trains() -> None:
    model = tiny().train()
    plain = torch.cat([g.flatten() for g in gradients(model)])
    with torch.autocast("cpu", torch.bfloat16):
        mixed = torch.cat([g.flatten() for g in gradients(model)])
    assert mixed.isfinite().all()
    assert nn.functional.cosine_similarity(mixed, plain, dim=0) > 0.99


# Trainer


def waves(rows: int) -> list[dict[str, Any]]:
    """Two classes: slow and fast waves of any phase."""
    generator = torch.Generator().manual_seed(7)
    time, phase = torch.arange(LENGTH), 6.3 * torch.rand(rows, generator=generator)
    return [
        {"input_values": torch.sin((0.4 if i % 2 else 1.2) * time + phase[i]), "labels": i % 2}
        for i in range(rows)
    ]


def trainer(path: Path, *, steps: int, groups: bool, **options: Any) -> Trainer:
    model = tiny(num_labels=2, hidden_size=16, num_hidden_layers=1, dt_min=0.05, dt_max=1.0)
    arguments = TrainingArguments(
        output_dir=str(path),
        max_steps=steps,
        per_device_train_batch_size=16,
        learning_rate=0.02,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        logging_steps=10_000,
        **options,
    )
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.02, ssm_lr=1e-3)) if groups else None
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=waves(64),
        eval_dataset=waves(64),
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
        optimizers=(optimizer, None),
    )


@pytest.mark.parametrize("groups", [False, True])
def test_trainer_learns(tmp_path: Path, groups: bool) -> None:
    run = trainer(tmp_path, steps=40, groups=groups, save_strategy="no")
    before = run.model.s4d.layers[0].layer.kernel.A_imag.detach().clone()
    run.train()
    assert run.evaluate()["eval_accuracy"] > 0.9
    moved = (run.model.s4d.layers[0].layer.kernel.A_imag - before).abs().max()
    assert 0 < moved < (0.05 if groups else math.inf)  # 40 steps of at most about ssm_lr each


def test_trainer_resumes_to_the_same_weights(tmp_path: Path) -> None:
    options: dict[str, Any] = {"groups": True, "save_strategy": "steps", "save_steps": 3}
    whole = trainer(tmp_path / "a", steps=6, **options)
    whole.train()
    resumed = trainer(tmp_path / "a", steps=6, **options)
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.zero_()
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())
    assert [group["initial_lr"] for group in resumed.optimizer.param_groups] == [0.02, 1e-3]


def test_the_trainer_of_the_layers_spares_their_dynamics(tmp_path: Path) -> None:
    plain = trainer(tmp_path, steps=6, groups=False, save_strategy="no", weight_decay=0.5)
    run = S4DTrainer(model=plain.model, args=plain.args, train_dataset=waves(64))
    run.create_optimizer_and_scheduler(6)
    names = {id(p): name for name, p in run.model.named_parameters()}
    found = {
        names[id(p)]: (g["lr"], g["weight_decay"]) for g in run.optimizer.param_groups for p in g["params"]
    }
    assert found.keys() == set(names.values())
    for name, settings in found.items():
        slow = ".kernel." in name and not name.endswith(".C")
        bare = slow or "bias" in name or "norm" in name
        assert settings == (1e-3 if slow else 0.02, 0.0 if bare else 0.5), name
    start = run.model.s4d.layers[0].layer.kernel.A_imag.detach().clone()
    run.train()
    assert 0 < (run.model.s4d.layers[0].layer.kernel.A_imag - start).abs().max() < 0.01
    given = torch.optim.SGD(run.model.parameters(), lr=1.0)
    kept = S4DTrainer(model=run.model, args=plain.args, optimizers=(given, None))
    assert kept.create_optimizer() is given and len(given.param_groups) == 1


# Bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"d_state": 7}, "d_state=7 is odd"),
        ({"init": "hippo"}, "init='hippo': choose one of legs"),
        ({"discretization": "euler"}, "discretization='euler'"),
        ({"n_ssm": 3}, "n_ssm=3 does not divide"),
        ({"dt_min": 0.0}, "dt_min is 0.0: give a positive number"),
        ({"dropout": 1.0}, "dropout is 1.0: give a probability in"),
        ({"norm": "batch"}, "norm='batch'"),
        ({"hidden_size": 0}, "hidden_size is 0: give a whole number of at least 1"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers is 1.5: give a whole number of at least 1"),
        ({"num_channels": 0}, "num_channels is 0: give a whole number of at least 1"),
        ({"num_labels": 0}, "num_labels is 0: give a whole number of at least 1"),
        ({"vocab_size": 0}, "vocab_size is 0: give a whole number of at least 1"),
        ({"max_position": 0}, "max_position is 0: give a whole number of at least 1"),
        ({"pooling": "max"}, "pooling='max': choose one of mean, last"),
        ({"problem_type": "ranking"}, "problem_type='ranking'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        tiny(**options)


def test_an_option_that_went_bad_later_is_refused() -> None:
    config = S4DConfig(hidden_size=8)
    config.pooling = "max"
    with pytest.raises(InputError, match="pooling='max'"):
        S4DForSequenceClassification(config)


LEFT = torch.ones(4, LENGTH)
LEFT[1, :3] = 0
HOLE = torch.ones(4, LENGTH)
HOLE[2, 4] = 0
EMPTY = torch.ones(4, LENGTH)
EMPTY[3] = 0


@pytest.mark.parametrize(
    ("options", "inputs", "said"),
    [
        ({}, {}, "give input_values alone"),
        ({}, {"input_ids": torch.zeros(1, 3, dtype=torch.long)}, "give input_values alone"),
        ({"vocab_size": 5}, {"input_values": signals()}, "give input_ids alone: this model has vocab_size=5"),
        ({"vocab_size": 5}, {"input_ids": torch.tensor([[0, 5]])}, "runs from 0 to 5"),
        ({"vocab_size": 5}, {"input_ids": torch.tensor([[-1, 4]])}, "runs from -1 to 4"),
        ({"vocab_size": 5}, {"input_ids": torch.zeros(2, 3)}, "input_ids is torch.float32"),
        ({}, {"input_values": signals(4, 2)}, r"give \(batch, length, 1\)"),
        ({"num_channels": 2}, {"input_values": signals()}, r"give \(batch, length, 2\)"),
        ({}, {"input_values": signals() + 0j}, "input_values is torch.complex64"),
        ({}, {"input_values": torch.zeros(2, 0)}, "input_values has no time step"),
        ({"vocab_size": 5}, {"input_ids": torch.zeros(2, 3).bool()}, "input_ids is torch.bool"),
        ({"vocab_size": 300}, {"input_ids": torch.zeros(2, 0).long()}, "input_ids has no time step"),
        ({"max_position": 15}, {"input_values": signals()}, "length 16, above max_position=15"),
        ({}, {"input_values": signals(), "attention_mask": torch.ones(4, 3)}, "attention_mask has shape"),
        ({}, {"input_values": signals(), "attention_mask": LEFT}, "pad on the right"),
        ({}, {"input_values": signals(), "attention_mask": HOLE}, "pad on the right"),
        ({}, {"input_values": signals(), "attention_mask": EMPTY}, "pad on the right"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], inputs: dict[str, Tensor], said: str) -> None:
    with pytest.raises(InputError, match=said):
        tiny(**options)(**inputs)


def test_bytes_are_tokens() -> None:
    model = tiny(vocab_size=256).eval()
    text = torch.tensor([list(b"bytes \xff")])
    torch.testing.assert_close(model(input_ids=text.byte()).logits, model(input_ids=text).logits)


def test_states_that_cannot_be_are_refused() -> None:
    model = tiny(S4DModel)
    with pytest.raises(InputError, match=r"inputs has shape \(4, 16, 1\): give one time step"):
        model.step(signals().unsqueeze(-1), model.initial_state(4))
    with pytest.raises(InputError, match="state is a NoneType: give complex numbers"):
        model.step(signals()[:, 0], [None, None])
    with pytest.raises(InputError, match="states has 1 entries: give one for each of 2 layers"):
        model.step(signals()[:, 0], model.initial_state(4)[:1])
    mask = torch.ones(4, LENGTH)
    mask[0, -1] = 0
    with pytest.raises(InputError, match="give rows of one length"):
        model(input_values=signals(), attention_mask=mask, use_cache=True)
    both = tiny(S4DModel, bidirectional=True)
    with pytest.raises(InputError, match="bidirectional"):
        both.initial_state(4)
    with pytest.raises(InputError, match="bidirectional"):
        both(input_values=signals(), use_cache=True)
