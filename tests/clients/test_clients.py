"""Adapters under the programs that people use them with, each as it is used."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny_models import save_bert
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from two_processes import patiently

import eckart
from conftest import Start
from eckart.adapters import export_lora

TOKENS = torch.arange(8)[None]
LOGITS = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[1]), sys.argv[2]).eval()
torch.save(model(torch.arange(8)[None]).logits, sys.argv[3])
assert ("eckart" in sys.modules) == (sys.argv[4] == "with")
"""
ECKART = (sys.executable, "-c", "import sys; from eckart.cli import main; sys.exit(main())")


def adapted(gpt2: Path, method: str = "bone") -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(gpt2)
    return eckart.adapt(base, method, r=4, target_modules=["c_attn", "c_fc"], init_weights=False).eval()


def test_an_export_in_a_process_with_peft_alone(gpt2: Path, start: Start, tmp_path: Path) -> None:
    model = adapted(gpt2)
    export_lora(model, tmp_path / "lora", server="vllm")
    done = start(LOGITS, gpt2, tmp_path / "lora", tmp_path / "logits", "without")
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "logits"), model(TOKENS).logits, rtol=1e-4, atol=1e-5)


def test_a_foreign_process_needs_eckart_run(gpt2: Path, start: Start, tmp_path: Path) -> None:
    model = adapted(gpt2)
    model.save_pretrained(tmp_path / "adapter")
    arguments = (gpt2, tmp_path / "adapter", tmp_path / "logits", "with")
    assert "KeyError: 'ECKART_BONE'" in start(LOGITS, *arguments).stderr
    done = start(LOGITS, *arguments, before=(*ECKART, "run", "--"))
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "logits"), model(TOKENS).logits, rtol=1e-5, atol=1e-6)


def test_the_programs_own_exit_code(start: Start) -> None:
    assert start("raise SystemExit(7)", before=(*ECKART, "run", "--")).returncode == 7


def examples() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 20, (8,), generator=generator) for _ in range(8)]
    return [{"input_ids": row, "labels": row} for row in rows]


def test_trainer_resumes_and_takes_the_best(gpt2: Path, tmp_path: Path) -> None:
    def trainer(steps: int) -> Trainer:
        options = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}
        arguments = TrainingArguments(
            tmp_path / "run",
            max_steps=steps,
            per_device_train_batch_size=4,
            report_to=[],
            learning_rate=0.01,
            use_cpu=True,
            disable_tqdm=True,
            **options,
        )
        return Trainer(adapted(gpt2), arguments, train_dataset=examples(), eval_dataset=examples())

    trainer(2).train()
    resumed = trainer(4)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    best = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(gpt2), resumed.state.best_model_checkpoint
    ).eval()
    torch.testing.assert_close(best(TOKENS).logits, resumed.model.eval()(TOKENS).logits)


DISTRIBUTED = """
import sys, torch, eckart
from accelerate import Accelerator
from transformers import AutoModelForCausalLM
accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
model = eckart.adapt(AutoModelForCausalLM.from_pretrained(sys.argv[1]), "bone", r=4, target_modules=["c_attn"])
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
model, optimizer = accelerator.prepare(model, optimizer)
rows = torch.arange(8)[None] + accelerator.process_index
for _ in range(2):
    accelerator.backward(model(input_ids=rows, labels=rows).loss)
    optimizer.step()
    optimizer.zero_grad()
own = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
both = accelerator.gather(own[None])
assert torch.equal(both[0], both[1]) and own.abs().sum() > 0
accelerator.wait_for_everyone()
if accelerator.is_main_process:
    accelerator.unwrap_model(model).save_pretrained(sys.argv[2])
accelerator.wait_for_everyone()
torch.distributed.destroy_process_group()
"""


def test_accelerate_in_two_processes(gpt2: Path, start: Start, tmp_path: Path) -> None:
    """Without GPUs `accelerate launch --cpu` needs MPI for several processes; --multi_gpu starts them by itself."""
    options = (
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    )
    before = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *options)
    started = (*before, "--main_process_port", "0")
    patiently(lambda: start(DISTRIBUTED, gpt2, tmp_path / "adapter", before=started))
    base = AutoModelForCausalLM.from_pretrained(gpt2)
    plain = base(TOKENS).logits
    assert not torch.equal(PeftModel.from_pretrained(base, tmp_path / "adapter")(TOKENS).logits, plain)


def test_sentence_transformers(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    bert = save_bert(tmp_path / "bert")

    def encoder() -> Any:
        return sentence_transformers.SentenceTransformer(str(bert), device="cpu")

    model = encoder()
    plain = model.encode(["good film"])
    model.add_adapter(eckart.adapters.BoneConfig(r=4, target_modules=["query"], init_weights=False))
    outputs = model.encode(["good film"])
    assert abs(outputs - plain).max() > 1e-4
    model.save_pretrained(str(tmp_path / "saved"))
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert abs(again.encode(["good film"]) - outputs).max() < 1e-5


@pytest.mark.parametrize("kind", ["SFT", "DPO"])
def test_trl(kind: str, gpt2: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    rows: dict[str, list[str]] = {"text": ["the film was good"] * 8}
    if kind == "DPO":
        rows = {"prompt": ["the film was"] * 8, "chosen": [" good"] * 8, "rejected": [" bad"] * 8}
    arguments = getattr(trl, f"{kind}Config")(
        str(tmp_path / "run"),
        max_steps=2,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        bf16=False,
        learning_rate=0.01,
        save_strategy="no",
    )
    trainer = getattr(trl, f"{kind}Trainer")(
        AutoModelForCausalLM.from_pretrained(gpt2),
        args=arguments,
        train_dataset=datasets.Dataset.from_dict(rows),
        processing_class=AutoTokenizer.from_pretrained(gpt2),
        peft_config=eckart.adapters.BoneConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(gpt2), tmp_path / "adapter").eval()
    torch.testing.assert_close(again(TOKENS).logits, trainer.model.eval()(TOKENS).logits)


def test_diffusers(tmp_path: Path) -> None:
    """Adapters act in a model of diffusers; its own file for them is LoRA's alone, PEFT's is any method's."""
    diffusers = pytest.importorskip("diffusers")

    def unet() -> Any:
        torch.manual_seed(0)
        return diffusers.UNet2DConditionModel(
            sample_size=8,
            layers_per_block=1,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=8,
            attention_head_dim=4,
            norm_num_groups=4,
        ).eval()

    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([1]), torch.randn(1, 3, 8))
    config = eckart.adapters.BoneConfig(r=2, target_modules=["to_q", "to_v"], init_weights=False)
    model = unet()
    model.add_adapter(config)
    outputs = model(*inputs).sample
    assert (outputs - unet()(*inputs).sample).abs().max() > 1e-4
    with pytest.raises(eckart.errors.InputError, match="diffusers reads LoRA alone and could not load"):
        model.save_lora_adapter(tmp_path / "file")
    assert not (tmp_path / "file").exists()
    wrapped = get_peft_model(unet(), config).eval()
    torch.testing.assert_close(wrapped(*inputs).sample, outputs)
    wrapped.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(unet(), tmp_path / "adapter").eval()
    torch.testing.assert_close(again(*inputs).sample, outputs)
    export_lora(wrapped, tmp_path / "lora")
    plain = PeftModel.from_pretrained(unet(), tmp_path / "lora").eval()
    torch.testing.assert_close(plain(*inputs).sample, outputs, rtol=1e-4, atol=1e-5)
