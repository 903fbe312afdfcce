"""DePT: the input that the model gets, on encoders and decoders, with PEFT's loading, switching and generating."""

import copy
import math
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from tiny_models import bert_config, gpt2_config
from torch import nn
from transformers import (
    BertForSequenceClassification,
    BertModel,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForTokenClassification,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
)

import eckart
from eckart.adapters import (
    DePTConfig,
    InputSpace,
    export_lora,
    lr_scales,
    saved_bytes,
    solve_budget,
    trainable_parameters,
    walk,
)
from eckart.adapters._prompt_layer import input_reader
from eckart.errors import InputError

WIDTH, M, S, R = 16, 5, 12, 3
IDS = torch.randint(5, 40, (3, 8), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] * 3 + [0] * 5])
SPACE = InputSpace(WIDTH, 128)
T5 = {
    "vocab_size": 40,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 1,
    "num_heads": 2,
    "dropout_rate": 0.0,
}


def gpt2(**options):
    return gpt2_config(bos_token_id=1, eos_token_id=2, pad_token_id=0, **options)


def roberta():
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    return RobertaConfig(vocab_size=40, max_position_embeddings=32, pad_token_id=1, **shape)


MODELS = {
    "encoder": lambda: BertForSequenceClassification(bert_config()),
    "bare": lambda: BertModel(bert_config()),
    "tokens": lambda: RobertaForTokenClassification(roberta()),
    "decoder": lambda: GPT2LMHeadModel(gpt2()),
    "classifier": lambda: GPT2ForSequenceClassification(gpt2()),
    "both": lambda: T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, **T5)),
}
LABELS = {
    "tokens": IDS % 2,
    "decoder": IDS,
    "both": IDS,
    "encoder": IDS[:, 0] % 2,
    "classifier": IDS[:, 0] % 2,
}


def base(kind):
    torch.manual_seed(0)
    return MODELS[kind]().eval()


def config(**options):
    return DePTConfig(**{"num_virtual_tokens": M, "max_length": S, "r": R, "init_weights": False} | options)


def adapted(kind, **options):
    torch.manual_seed(1)
    return get_peft_model(base(kind), config(**options)).eval()


def prompt(model, name="default"):
    return model.base_model.model.input_prompt.adapter(name)


def output(model, mask=MASK, ids=IDS, **named):
    found = model(input_ids=ids, attention_mask=mask, **named)
    return found.last_hidden_state if "last_hidden_state" in found else found.logits


def batch(kind):
    labels = {"labels": LABELS[kind]} if kind in LABELS else {}
    return {"input_ids": IDS, "attention_mask": MASK, **labels}


@pytest.mark.parametrize("kind", MODELS)
def test_saves_loads_disables_and_unloads(kind, tmp_path):
    named = {"labels": IDS} if kind == "both" else {}
    plain, model = output(base(kind), **named), adapted(kind)
    there = output(model, **named)
    assert there.shape == plain.shape  # heads, labels and losses meet the text's own positions
    assert (there - plain).abs().max() > 1e-3
    with model.disable_adapter():
        torch.testing.assert_close(output(model, **named), plain)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(kind), tmp_path).eval()
    torch.testing.assert_close(output(loaded, **named), there)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert PeftModel.from_pretrained(base(kind), tmp_path, is_trainable=True).get_nb_trainable_parameters()[0]
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in prompt(model).parameters():
            parameter.zero_()
    torch.testing.assert_close(output(copied, **named), there)
    unloaded = copied.unload()
    assert not any("eckart" in name for name in unloaded.state_dict())
    assert "generate" not in vars(unloaded)
    torch.testing.assert_close(output(unloaded, **named), plain)


@pytest.mark.parametrize("kind", ["bare", "decoder"])
def test_without_b_it_is_prompt_tuning_with_the_same_vectors(kind):
    model = adapted(kind)
    with torch.no_grad():
        prompt(model).lora_embedding_B.zero_()
    task = {"bare": "FEATURE_EXTRACTION", "decoder": "CAUSAL_LM"}[kind]
    tuned = get_peft_model(base(kind), PromptTuningConfig(task_type=task, num_virtual_tokens=M)).eval()
    with torch.no_grad():
        tuned.prompt_encoder["default"].embedding.weight.copy_(prompt(model).prompt_embedding)
    assert torch.equal(output(model), output(tuned)[:, M:])


def test_a_decoder_that_classifies_reads_the_last_real_token():
    """PEFT's prompts give it embeddings alone, by which it cannot tell padding: it reads the last position."""
    model = adapted("classifier")
    padded = IDS * MASK
    torch.testing.assert_close(output(model, ids=padded)[2], output(model, MASK[2:, :3], IDS[2:, :3])[0])


@pytest.mark.parametrize(("m", "s", "r", "count"), [(5, 12, 3, 164), (0, 12, 3, 84), (7, 20, 16, 688)])
def test_count_is_the_formula(m, s, r, count):
    model = adapted("decoder", num_virtual_tokens=m, max_length=s, r=r)
    assert m * WIDTH + r * (s + WIDTH) == count
    assert trainable_parameters(model) == model.get_nb_trainable_parameters()[0] == count
    assert saved_bytes(model) == 4 * count


@pytest.mark.parametrize("m", [80, 60, 40, 20, 0])
def test_published_sizes_follow_from_the_budget(m):
    fitted = DePTConfig(num_virtual_tokens=m, max_length=256).fitted(InputSpace(768, None), 76_800)
    assert fitted.r == {80: 15, 60: 30, 40: 45, 20: 60, 0: 75}[m]
    assert fitted.trainable_parameters(InputSpace(768, None)) == 76_800


def test_sizes_that_are_left_open():
    wide = DePTConfig().fitted(InputSpace(768, None))
    assert (wide.num_virtual_tokens, wide.max_length, wide.r) == (40, 256, 45)
    short = DePTConfig().fitted(InputSpace(WIDTH, 64))
    assert (short.max_length, short.r) == (32, 16)  # half of the positions, and all that r can hold
    assert short.num_virtual_tokens == 32  # the other half, although 100 vectors had more numbers
    given = DePTConfig(num_virtual_tokens=10).fitted(InputSpace(WIDTH, 64))
    assert given.max_length == 54


def test_a_budget_is_used():
    for limit in (700, 1000, 1600, 1900):
        fitted = solve_budget(base("decoder"), DePTConfig(max_length=S), limit)
        assert limit - (S + WIDTH) < fitted.trainable_parameters(SPACE) <= limit
    much = solve_budget(base("decoder"), DePTConfig(max_length=S), 10_000)
    assert (much.num_virtual_tokens, much.r) == (100, 12)  # no longer prompt unasked
    model = eckart.adapt(base("decoder"), "dept", budget="5%", max_length=S)
    total = sum(p.numel() for p in base("decoder").parameters())
    assert 0.9 * 0.05 * total < trainable_parameters(model) <= 0.05 * total
    assert trainable_parameters(eckart.adapt(base("decoder"), "dept", budget="4kB", max_length=S)) <= 1000
    with pytest.raises(InputError, match="the smallest possible is 28"):
        solve_budget(base("decoder"), DePTConfig(max_length=S), 27)
    assert solve_budget(base("decoder"), DePTConfig(max_length=S), 28).r == 1


def test_starts():
    model = get_peft_model(base("decoder"), DePTConfig(num_virtual_tokens=M, max_length=40, r=9))
    started = prompt(model)
    table = model.get_input_embeddings().weight
    assert all((table == row).all(1).any() for row in started.prompt_embedding)
    assert not started.lora_embedding_B.any()
    assert 0.9 / 3 < started.lora_embedding_A.abs().max() <= 1 / 3
    assert abs(started.lora_embedding_A.mean()) < 0.05
    assert started.scale == 8 / 3
    again = get_peft_model(base("decoder"), DePTConfig(num_virtual_tokens=M, max_length=40, r=9, seed=1))
    assert not torch.equal(prompt(again).lora_embedding_A, started.lora_embedding_A)
    normal = DePTConfig(num_virtual_tokens=60, max_length=S, r=1, prompt_tuning_init="RANDOM")
    vectors = prompt(get_peft_model(base("decoder"), normal)).prompt_embedding
    assert 0.9 < vectors.std() < 1.1


def test_a_text_is_repeated_to_the_length_of_the_prompt(tmp_path):
    from tiny_models import save_tokenizer

    tokens = save_tokenizer(tmp_path)("good film")["input_ids"]
    told = {"prompt_tuning_init_text": "good film", "tokenizer_name_or_path": str(tmp_path)}
    model = get_peft_model(base("decoder"), config(prompt_tuning_init="TEXT", init_weights=True, **told))
    table = model.get_input_embeddings().weight
    assert torch.equal(prompt(model).prompt_embedding, table[(tokens * 3)[:M]])


def test_rows_of_a_that_meet_padding_alone_get_no_gradient():
    model = adapted("encoder").train()
    model(
        **(batch("encoder") | {"attention_mask": MASK.clamp(max=(torch.arange(8) < 6).long())})
    ).loss.backward()
    gradient = prompt(model).lora_embedding_A.grad
    assert not gradient[6:].any()
    assert gradient[:6].any(1).all()


def test_the_update_belongs_to_the_place_and_not_to_the_token():
    model = adapted("bare", num_virtual_tokens=0)
    table = model.get_input_embeddings()
    added = {
        name: prompt(model)(table(ids))[0] - table(ids) for name, ids in (("a", IDS), ("b", IDS.flip(1)))
    }
    torch.testing.assert_close(added["a"], added["b"])
    torch.testing.assert_close(added["a"][0], prompt(model).offset()[:8])
    model.base_model.model.embeddings.position_embeddings.weight.data.zero_()
    swapped = IDS[:, [1, 0, *range(2, 8)]]
    whole = torch.ones_like(MASK)
    assert (output(model, whole)[:, 7] - output(model, whole, swapped)[:, 7]).abs().max() > 1e-4
    with model.disable_adapter():
        torch.testing.assert_close(output(model, whole)[:, 7], output(model, whole, swapped)[:, 7])


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_on_either_side_changes_nothing(side):
    model = adapted("decoder", padding_side=side)
    places = (MASK.flip(1).cumsum(1) - 1).clamp(min=0)
    for row, length in enumerate(MASK.sum(1).tolist()):
        text = IDS[row : row + 1, :length]
        alone = model(input_ids=text).logits[0]
        right = output(model)[row, :length]
        moved = IDS.roll(8 - length, 1)
        left = output(model, MASK.flip(1), moved, position_ids=places)[row, 8 - length :]
        torch.testing.assert_close(right, alone)
        torch.testing.assert_close(left, alone)
    table = model.get_input_embeddings()(IDS[:1, :3])
    first = {"right": 0, "left": S - 3}[side]
    added = prompt(model)(table)[0][:, M:] - table
    torch.testing.assert_close(added[0], prompt(model).offset()[first : first + 3])


def test_full_padding_equals_a_shorter_batch():
    model = adapted("encoder")
    ids, mask = (nn.functional.pad(value, (0, S - 8)) for value in (IDS, MASK))
    torch.testing.assert_close(output(model), output(model, mask, ids))


def test_two_groups_of_parameters():
    model = adapted("encoder", offset_lr_scale=0.01)
    stem = "base_model.model.input_prompt.eckart_adapters.default."
    assert lr_scales(model) == {stem + name: 0.01 for name in ("lora_embedding_A", "lora_embedding_B")}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {stem + name for name in ("prompt_embedding", "lora_embedding_A", "lora_embedding_B")}


def test_what_the_model_is_given():
    model, seen = adapted("decoder"), {}
    model.base_model.model.transformer.h[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(states=args[0]), with_kwargs=True
    )
    output(model)
    assert seen["states"].shape == (3, M + 8, WIDTH)
    table = model.get_input_embeddings()
    longer, mask = prompt(model)(table(IDS), MASK)
    assert torch.equal(mask, torch.cat([torch.ones(3, M, dtype=torch.long), MASK], 1))
    assert torch.equal(longer[:, :M], prompt(model).prompt_embedding.expand(3, -1, -1))
    torch.testing.assert_close(
        prompt(model).offset(),
        8 / math.sqrt(R) * prompt(model).lora_embedding_A @ prompt(model).lora_embedding_B,
    )


def test_segments_and_positions_move_with_the_text():
    model = adapted("bare")
    kinds, places = (IDS % 2), torch.arange(8).expand(3, 8)
    torch.testing.assert_close(output(model, position_ids=places), output(model))
    assert (output(model, token_type_ids=kinds) - output(model)).abs().max() > 1e-3
    assert torch.equal(output(model, token_type_ids=torch.zeros_like(kinds)), output(model))
    embeddings = model.get_input_embeddings()(IDS)
    torch.testing.assert_close(model(inputs_embeds=embeddings, attention_mask=MASK)[0], output(model))
    states = model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states
    assert {state.shape for state in states} == {(3, 8, WIDTH)}


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
@pytest.mark.parametrize("options", [{"do_sample": False}, {"num_beams": 2}])
def test_generation_with_and_without_a_cache(task, options):
    model = adapted("decoder", task_type=task)
    left = {
        "input_ids": IDS,
        "attention_mask": MASK.flip(1),
        "max_new_tokens": 7,
        "min_new_tokens": 7,
        **options,
    }
    with_cache = model.generate(**left)
    assert with_cache.shape == (3, 15)  # past max_length, which holds for what was given
    assert torch.equal(with_cache, model.generate(**left, use_cache=False))
    alone = model.generate(
        input_ids=IDS[2:, 5:], **{k: v for k, v in left.items() if "_" not in k or "new" in k or k in options}
    )
    assert torch.equal(alone[0, 3:], with_cache[2, 8:])
    with model.disable_adapter():
        plain = base("decoder").generate(**left)
        assert torch.equal(model.generate(**left), plain)
    assert not torch.equal(with_cache, plain)


@pytest.mark.parametrize("task", [None, "SEQ_2_SEQ_LM"])
def test_generation_of_an_encoder_and_decoder(task):
    try:
        get_peft_model(base("both"), LoraConfig(task_type=task, target_modules=["q"]))
    except AttributeError:
        pytest.skip("this PEFT wraps no such model of this transformers, whatever the adapter")
    model = adapted("both", task_type=task)
    given = {"input_ids": IDS, "attention_mask": MASK, "max_new_tokens": 6, "min_new_tokens": 6}
    found = model.generate(**given)
    assert torch.equal(found, model.generate(**given, use_cache=False))
    alone = model.generate(input_ids=IDS[2:, :3], max_new_tokens=6, min_new_tokens=6)
    assert torch.equal(alone[0], found[2])
    scores = model(input_ids=IDS, attention_mask=MASK, decoder_input_ids=found[:, :-1]).logits
    assert torch.equal(scores[:, 0].argmax(-1)[found[:, 1] != 1], found[:, 1][found[:, 1] != 1])


def test_a_cache_that_is_carried_on_by_hand():
    model = adapted("decoder")
    mask = torch.ones_like(MASK)
    whole = output(model, mask)
    first = model(input_ids=IDS[:, :6], attention_mask=mask[:, :6], use_cache=True)
    assert first.past_key_values.get_seq_length() == M + 6
    prompt(model).max_length, given = 6, model.base_model.model.input_prompt
    given.given = 6
    rest = model(input_ids=IDS[:, 6:], attention_mask=mask, past_key_values=first.past_key_values).logits
    prompt(model).max_length = S
    later = output(model, mask)
    torch.testing.assert_close(rest, later[:, 6:])
    given.given = None
    assert (whole - later).abs().max() > 1e-4


def test_several_prompts_take_turns(tmp_path):
    model = adapted("encoder")
    first = output(model)
    model.add_adapter("other", config(num_virtual_tokens=2, r=1, seed=3))
    assert torch.equal(output(model), first)
    model.set_adapter("other")
    other = output(model)
    assert (other - first).abs().max() > 1e-4
    assert prompt(model, "other").prompt_embedding.requires_grad
    assert not prompt(model).prompt_embedding.requires_grad
    model.save_pretrained(tmp_path)
    model.delete_adapter("other")
    torch.testing.assert_close(output(model), first)
    model.load_adapter(tmp_path / "other", "back")
    model.set_adapter("back")
    torch.testing.assert_close(output(model), other)
    with pytest.raises(InputError, match="default, back are prompts, of which one acts"):
        model.base_model.set_adapter(["default", "back"])
    with pytest.raises(InputError, match="a batch has one prompt"):
        model(input_ids=IDS, attention_mask=MASK, adapter_names=["default", "back", "back"])


def test_beside_adapters_of_layers(tmp_path):
    lora = eckart.adapt(base("encoder"), "lora", r=2, init_weights=False)
    both = get_peft_model(lora.base_model.model, config(), adapter_name="before").eval()
    assert (output(both) - output(lora)).abs().max() == 0
    both.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(base("encoder"), tmp_path / "before")
    assert trainable_parameters(plain) == trainable_parameters(adapted("encoder"))


@pytest.mark.parametrize("kind", ["encoder", "decoder", "both"])
def test_trains_in_bfloat16_with_checkpoints_and_to_the_same_numbers_when_resumed(kind):
    def run(steps, state=None, checkpoints=False, dtype=torch.float32):
        model = get_peft_model(base(kind).to(dtype), config(init_weights=True)).train()
        if checkpoints:
            model.enable_input_require_grads()
            model.base_model.model.gradient_checkpointing_enable()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 1e-2)
        if state is not None:
            model.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            losses.append(
                model(**batch(kind), use_cache=False).loss if kind != "encoder" else model(**batch(kind)).loss
            )
            losses[-1].backward()
            optimizer.step()
        return [loss.item() for loss in losses], copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    losses, _ = run(6)
    assert losses[-1] < losses[0]
    first, state = run(3)
    assert first + run(3, state)[0] == losses
    assert run(3, checkpoints=True)[0] == pytest.approx(first, rel=1e-5)
    half, _ = run(6, dtype=torch.bfloat16)
    assert half == pytest.approx(losses, rel=0.03)


def test_half_precision_keeps_the_prompt_in_float32():
    model = get_peft_model(base("encoder").bfloat16(), config())
    assert {p.dtype for p in prompt(model).parameters()} == {torch.float32}
    assert output(model).dtype == torch.bfloat16


@pytest.mark.compiled
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_compiles_whole(kind):
    model = adapted(kind)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(output(compiled), output(model))


def refused(make, *words):
    model = base("decoder")
    before = {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
    one_line = "^" + "".join(f"(?=.*{re.escape(word)})" for word in words) + r".*\Z"
    with pytest.raises(InputError, match=one_line):
        make(model)
    assert {name: (id(p), p.requires_grad) for name, p in model.named_parameters()} == before
    assert not any("eckart" in name for name, _ in model.named_modules())
    assert "generate" not in vars(model)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_virtual_tokens": 117, "max_length": 12}, ("117", "12", "129", "128")),
        ({"num_virtual_tokens": 128}, ("128", "positions")),
        ({"max_length": 129}, ("129", "128")),
        ({"r": 13, "max_length": 12}, ("r is 13", "min(max_length, width) = 12")),
        ({"r": 0}, ("r is 0", "at least 1")),
        ({"num_virtual_tokens": -1}, ("num_virtual_tokens is -1",)),
        ({"max_length": 0}, ("max_length is 0",)),
        ({"lora_alpha": 0.0}, ("lora_alpha is 0",)),
        ({"offset_lr_scale": -1.0}, ("offset_lr_scale is -1",)),
        ({"padding_side": "top"}, ("padding_side is 'top'", "'left'")),
        ({"prompt_tuning_init": "ZERO"}, ("prompt_tuning_init is 'ZERO'", "RANDOM")),
        ({"prompt_tuning_init": "TEXT"}, ("prompt_tuning_init_text is None", "tokenizer")),
        ({"prompt_tuning_init_text": "good"}, ("prompt_tuning_init_text is 'good'", "TEXT")),
        ({"target_modules": ["c_attn"]}, ("target_modules", "adapts no layer")),
        ({"budget": 2000, "r": 2}, ("budget and r are both given",)),
        ({"budget": 5}, ("5", "smallest possible")),
    ],
)
def test_bad_options_change_nothing(options, words):
    refused(lambda model: eckart.adapt(model, "dept", **options), *words)


def test_the_last_place_is_still_one():
    eckart.adapt(base("decoder"), "dept", num_virtual_tokens=116, max_length=12, r=12)
    positions = adapted("tokens", num_virtual_tokens=18)  # 32 numbers of which RoBERTa's begin at 2
    assert output(positions, torch.ones(3, 12, dtype=torch.long), IDS.repeat(1, 2)[:, :12]).shape[1] == 12
    with pytest.raises(InputError, match="31 positions, of which this model has 30"):
        adapted("tokens", num_virtual_tokens=19)


def test_bad_input_is_refused():
    model = adapted("decoder")
    with pytest.raises(InputError, match="13 tokens and the prompt was made for 12"):
        output(model, None, IDS.repeat(1, 2)[:, :13])
    assert output(model, None, IDS.repeat(1, 2)[:, :12]).shape[1] == 12
    with pytest.raises(InputError, match="static cache"):
        model(input_ids=IDS, past_key_values=StaticCache(model.config, max_cache_len=30))
    with pytest.raises(InputError, match="attention_mask"):
        output(model, torch.ones(3, 1, 8, 8))
    with pytest.raises(InputError, match="prompt_lookup_num_tokens is given"):
        model.generate(input_ids=IDS[:1], prompt_lookup_num_tokens=2, max_new_tokens=2)
    cache = model(input_ids=IDS[:, :4], use_cache=True).past_key_values
    with pytest.raises(InputError, match="past_key_values holds tokens"):
        model.generate(input_ids=IDS, past_key_values=cache, max_new_tokens=2)


def test_what_there_is_nothing_to_merge_into():
    model = adapted("decoder")
    before = output(model)
    for act in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(InputError, match="cannot be merged"):
            act()
    with pytest.raises(InputError, match="prompt"):
        export_lora(model, "nowhere")
    with pytest.raises(InputError, match="a prompt, which changes its input and no layer"):
        next(walk(model))  # as a rule does that is attached
    assert torch.equal(output(model), before)


class Two(nn.Module):
    """It takes token ids or embeddings, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.table

    def forward(self, input_ids=None, inputs_embeds=None):
        return self.table(input_ids) if inputs_embeds is None else inputs_embeds


def test_models_without_input_embeddings():
    with pytest.raises(InputError, match="Linear does not take inputs_embeds"):
        eckart.adapt(nn.Linear(3, 3), "dept")
    two = Two()
    assert input_reader(two) == (two, None)
    broken = base("decoder")
    broken.get_input_embeddings().weight.data[3, 3] = math.nan
    with pytest.raises(InputError, match="NaN"):
        eckart.adapt(broken, "dept")


def test_a_checkpoint_of_another_model_is_refused_before_the_model_is_touched(tmp_path):
    adapted("decoder").save_pretrained(tmp_path)
    torch.manual_seed(0)
    wide = GPT2LMHeadModel(gpt2(n_embd=32))
    with pytest.raises(InputError, match="has shape"):
        PeftModel.from_pretrained(wide, tmp_path)
    assert not any("eckart" in name for name, _ in wide.named_modules())
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"damaged|cut short"):
        PeftModel.from_pretrained(base("decoder"), tmp_path)
