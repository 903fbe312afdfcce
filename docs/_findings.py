"""The list of findings on docs/evidence/index.md: one sentence each, its numbers from the rows."""

from __future__ import annotations

from statistics import mean

from _rows import ROOT, listed, percent, result, row, rows, short, signed
from _tables.curves import FULL, HEAD_ONLY, LORA, arms
from _tables.healing import told as healed
from _tables.lora_fair import FEDIT, RIDGE, chosen, points
from _tables.pela import told as distilled
from _tables.s4d import fashion
from _tables.trp import told as pruned
from _tables.zero_shot import told as chosen_right

LEAST = 0.01
"""Nats by which who learns is ahead of the head alone."""


def span(values: list[float], digits: int = 2) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def comparison() -> list[str]:
    board = [r for r in rows("sst2") if r.get("score") is not None and r["lr"] is not None]
    (told,) = (r["advice"] for r in rows("sst2") if "advice" in r)
    low, high = (percent(pick(r["score"] for r in board)) for pick in (min, max))
    return [
        f"On SST-2, after 48 steps, {len(board)} ways of training score {low} to {high} %. "
        f"{told[0]} ([SST-2](sst2.md))."
    ]


def curves() -> list[str]:
    """Who learns in a short training, and who is told apart from LoRA."""
    done = [arm for arm in arms() if arm not in (HEAD_ONLY, LORA, FULL)]
    ends = {(r["arm"], r["seed"]): r["validation"][-1] for r in rows("curves", part="run") if r["validation"]}
    gains = [
        mean(end - ends[HEAD_ONLY, seed] for (name, seed), end in ends.items() if name == arm) for arm in done
    ]
    gaps = [row("curves", part="paired", arm=arm) for arm in done]
    better, worse = (
        sum(sign * r["difference"] > r["half of the 95 % interval"] for r in gaps) for sign in (-1, 1)
    )
    steps, learnt = rows("curves", part="run")[0]["steps"], sum(gain < -LEAST for gain in gains)
    return [
        f"After {steps} steps {learnt} of {len(done)} adapters and rules have a loss more "
        f"than {LEAST} below the head alone's; three seeds tell {better} of them from LoRA as better, {worse} as worse "
        "([curves](curves.md))."
    ]


def real() -> list[str]:
    names = {"docstrings": "the built-in docstrings", "sst2": "SST-2"}
    told = []
    for data, name in names.items():
        of = {"part": "studies", "data": data}
        three, five, race = (
            row("real-studies", rule=rule, seeds=seeds, **of)
            for rule, seeds in (("paired", 3), ("paired", 5), ("race", 5))
        )
        short = row("real-studies", rule="short", **of)
        told.append(
            f"on {name} it leaves {race['set']:.1f} of eight methods after {race['steps']:,.0f} training steps, paired "
            f"grids of three and five seeds {three['set']:.1f} and {five['set']:.1f} after {three['steps']:,.0f} and "
            f"{five['steps']:,.0f}; given {short['steps']:,.0f} steps the race leaves {short['set']:.1f}; "
            f"it names one that all seeds rule out in {percent(race['wrong use'])} % of studies, "
            f"and one that is not alone among those it tested in {percent(race['not alone'])} %"
        )
    return [
        "In studies drawn from real runs the race is cheaper and bolder, since it compares only what tuning left: "
        f"{'; '.join(told)} "
        "([real studies](real-studies.md))."
    ]


def pairing() -> list[str]:
    settings = {"part": "power", "arms": "ahead", "points": 6.0, "seeds": 3}
    before, now = (row("paired-comparison", rule=rule, **settings) for rule in ("meet", "pooled"))
    wrong = max(r["wrong use"] for r in rows("paired-comparison", rule="pooled"))
    return [
        f"Compared example by example, an arm 6 points ahead of nine others is named in {percent(now['use'])} % of "
        f"simulated studies with three seeds; by intervals that must not meet in {percent(before['use'])} %. A wrong "
        f"one is named in at most {percent(wrong)} % ([paired comparison](paired-comparison.md)).",
        *real(),
    ]


def costs() -> list[str]:
    def against_peft(arm: str) -> list[float]:
        return [r["x PEFT"] for r in rows("step_time", "benchmarks", arm=arm)]

    saved = row("checkpoint_bytes", "benchmarks", model="llama-3.2-3b q, v", arm="randlora")["x PEFT"]
    bat, theirs = (
        row("memory_by_depth", "benchmarks", arm=arm)["MiB a layer"] for arm in ("bat", "peft bat")
    )
    return [
        f"A training step takes {span(against_peft('lora'))} times that of PEFT's layer for LoRA, "
        f"{span(against_peft('bone'))} for Bone and {span(against_peft('randlora'))} for RandLoRA "
        "([speed](speed.md#step-time)).",
        f"A RandLoRA checkpoint for Llama-3.2-3B's query and value layers has 1/{1 / saved:.0f} of the "
        "bytes of PEFT's "
        "([bytes](speed.md#bytes-on-disk)).",
        f"One more layer of width 1,024 adds {bat:.1f} MiB to the peak of a step with Bat, {theirs:.1f} "
        "MiB with PEFT's "
        "([memory](speed.md#peak-memory)).",
    ]


def recovery() -> list[str]:
    slope = row("matrix-sensing-gd", part="symmetric", k=8)["slope"]
    balanced = [r["steps to 1e-16"] for r in rows("matrix-sensing-gd", part="re-factored")]
    full, exact, square = (
        row("subgm", arm=arm, outliers=0.3)["error"] for arm in ("ℓ1, r′ = 20", "ℓ1, r′ = 3", "ℓ2, r′ = 20")
    )
    kept, bare, oja = (r["1 - cos^2"] for r in rows("streaming-top-eigenvector", part="heavy", heavy=80))
    inexact, cholesky = (
        row("robust-altmin", solver=solver)["factor of an iteration"] for solver in ("CG, 2 steps", "exact")
    )
    ours, best = (row("ratings", model=m)["rmse"] for m in ("eckart, k = 20", "Surprise SVD++ (20 factors)"))
    cost = result("completion_scaling", "benchmarks")
    return [
        f"Over-parameterised symmetric descent is slow: the squared error falls like T^{signed(slope)} "
        "(theory: −2); from an "
        f"unequal start, re-factored once, it is gone in {min(balanced)} to {max(balanced)} steps whatever "
        "the size of the "
        "start ([MatrixSensingGD](matrix-sensing-gd.md)).",
        f"With 30 % gross outliers a rank over-estimated seven-fold multiplies the error of RobustLowRank by "
        f"{full / exact:.1f}; the square loss multiplies it by {square / full:,.0f} "
        "([RobustLowRank](subgm.md)).",
        f"Among 80 heavy rows StreamingPCA misses the direction by {short(kept)} (1 − cos²); without "
        "keeping them by "
        f"{short(bare)}, Oja's rule at the best of its rates by {short(oja)} "
        "([StreamingPCA](streaming-top-eigenvector.md)).",
        "Two steps of conjugate gradients do for an exact regression: an iteration shrinks the error to "
        f"{inexact:.3f} of "
        f"itself, an exact one to {cholesky:.3f} ([MatrixCompletion](robust-altmin.md)).",
        f"On MovieLens `latest-small` MatrixCompletion has an RMSE of {ours:.4f}, the best of the other "
        f"packages {best:.4f}, "
        "none of them tuned on what is held out ([ratings](robust-altmin.md#real-ratings)).",
        f"The time of an iteration of completion grows like |Ω|^{cost['exponent in ratings, cg']:.2f}, up "
        "to ten million "
        "ratings ([cost](robust-altmin.md#cost)).",
    ]


def metrics() -> list[str]:
    rho = row("metrics-training", kind="rank correlation with the loss", metric="matrix_nuclear_norm")
    trained, untrained = (
        row("metrics-pretrained", minilm=name, layer=6)["matrix_nuclear_norm"]
        for name in ("trained", "untrained")
    )
    ratio = [
        row("metric_scaling", "benchmarks", case="n = 256", arm="entropy, Gram", width=d)["x column norms"]
        for d in (768, 1536, 2048, 4096)
    ]
    return [
        "The matrix nuclear norm orders the stages of one network by loss (rank correlation "
        f"{signed(rho['stages'])}), and networks of different width the wrong way round "
        f"({signed(rho['widths at the end'])}) ([metrics](matrix-nuclear-norm.md)).",
        f"It is higher for the trained MiniLM than for the same network untrained, {trained:.3f} against "
        f"{untrained:.3f}, where "
        "lower should be better ([encoder](matrix-nuclear-norm.md#a-pretrained-encoder)).",
        f"For texts of 256 tokens the exact entropy costs {span(ratio, 1)} times the score "
        "([cost](matrix-nuclear-norm.md#cost)).",
    ]


def s4d() -> list[str]:
    def mean(**settings: object) -> str:
        found = fashion(settings)
        return percent(sum(r["test"] for r in found) / len(found))

    recipe = row("s4d-fashion", images=54_000)
    interval = {r["model"]: r for r in rows("s4d-listops") if "model" in r}
    one, other = interval["s4d"], interval["gru"]
    at = {r["arm"]: r["x S4D"] for r in rows("s4d_scaling", "benchmarks", length=16_384)}
    return [
        f"S4D gets {percent(recipe['test'])} % of sequential Fashion-MNIST right after three passes, as a "
        "convolution and as "
        "a recurrence ([S4D](s4d.md)).",
        f"Its start matters less than published: LegS {mean(init='legs')} %, before random frequencies at "
        f"{mean(init='rand')} %, ahead in each of eight seeds; real "
        f"states {mean(init='real')} % ([starts](s4d.md#where-a-starts)).",
        f"On ListOps it scores {percent(one['accuracy'])} %, a GRU {percent(other['accuracy'])} %: the "
        "intervals "
        f"{'overlap' if other['high'] >= one['low'] else 'are apart'} ([S4D](s4d.md)).",
        f"At 16,384 steps a GRU takes {at['GRU']:.0f} and attention {at['attention']:.0f} times S4D's time "
        "([cost](s4d.md#cost)).",
    ]


def pretraining() -> list[str]:
    ours, trigram, unigram = (
        row("code-model", part="test split", model=name)["bits a byte"]
        for name in ("eckart stdlib-code, float16", "trigram, Kneser-Ney", "unigram")
    )
    first = rows("structured-pretraining", part="run")[0]
    paired = rows("structured-pretraining", part="paired", against=first["arm"])
    told = ", ".join(
        f"{r['arm']} {signed(r['difference'], 3)} ± {r['half of the 95 % interval']:.3f}" for r in paired
    )
    return [
        f"The embedded code model needs {ours:.2f} bits a byte of files it has not seen, trigrams {trigram:.2f}, "
        f"unigrams {unigram:.2f} ([code model](code-model.md)).",
        f"After {first['steps'][-1]} updates the loss of tiny code models minus that of a full one "
        f"(width 64, AdamW): {told}: too short a training to tell more than which starts fast "
        "([structured pretraining](structured-pretraining.md)).",
    ]


def federated() -> list[str]:
    def error(arm: str) -> str:
        found = next(r for r in rows("lora-fair", arm=arm) if "cosine" in r)
        return f"{found['error']:.4f}"

    first, last = ([r["bias"][place] for r in chosen(arm=FEDIT)] for place in (0, -1))
    left = [mean(r["error"]) / mean(r["bias"]) for r in chosen(arm=RIDGE)]
    data = dict.fromkeys(r["data"] for r in rows("lora-fair", part="paired"))
    gaps = [
        f"{name}: " + listed(f"{r['arm']} {points(r)}" for r in rows("lora-fair", part="paired", data=name))
        for name in data
    ]
    page = "([LoRA-FAIR](lora-fair.md#on-data))"
    lines = [
        f"Averaging A and B apart misses {percent(min(first))} to {percent(max(first))} % of the mean update in the "
        f"first round and {percent(min(last))} to {percent(max(last))} % in the sixth {page}."
    ]
    if left:
        lines.append(
            f"LoRA-FAIR's closed form leaves {percent(min(left))} to {percent(max(left))} % of what averaging "
            f"misses {page}."
        )
    if gaps:
        lines.append(f"Points of accuracy against FedIT, with 95 % intervals. {'. '.join(gaps)} {page}.")
    return [
        *lines,
        f"LoRA-FAIR's loss at λ = 0 is the noise of its start: on random factors FedIT's error is {error('FedIT')}, "
        f"the noisy start's at λ = 0 {error('sgd, xavier start, λ 0, 1000 steps')}, the zero start's "
        f"{error('sgd, zero start, λ 0, 1000 steps')} ([LoRA-FAIR](lora-fair.md#lora-fairs-start)).",
    ]


def compression() -> list[str]:
    (told,) = (r["advice"] for r in rows("compression") if "advice" in r)
    at = {(r["arm"], r["what"]): r for r in rows("compression_speed", "benchmarks", ratio=0.3)}
    sliced, factored = (
        tuple(f"{at[arm, what]['x dense']:.2f}" for what in ("prefill", "generation"))
        for arm in ("modegpt", "whitened-svd")
    )
    peaks = [at[arm, "generation"]["peak x dense"] for arm in ("modegpt", "whitened-svd")]
    slowest = min(r["x dense"] for r in rows("compression_speed", "benchmarks") if r["removed"])
    cost = rows("compression_cost", "benchmarks")
    longest, most = (max(r[key] for r in cost) for key in ("processor s", "peak MiB"))
    return [
        f"SmolLM2 with a fifth of its linear layers removed: {told[0]} ([compressions](compression.md)).",
        chosen_right(),
        healed(),
        pruned(),
        distilled(),
        f"With three tenths removed it makes {sliced[0]} (prefill) and {sliced[1]} (generation) times the dense "
        f"model's tokens a second as MoDeGPT slices it, {factored[0]} and {factored[1]} in two factors, from "
        f"{peaks[0]:.2f} and {peaks[1]:.2f} of its peak memory; at 10 to 40 % nothing is below {slowest:.2f} "
        "([speed](../commands/compress.md#speed-and-memory)).",
        f"Compressing it takes {longest:.0f} s of one core and {most / 1024:.1f} GiB at most, of {len(cost)} methods "
        "([cost](../commands/compress.md#measured)).",
    ]


def parity() -> list[str]:
    cases = sorted((ROOT / "tests" / "parity" / "cases").glob("*/*.npz"))
    methods = {path.parent.name for path in cases}
    return [
        f"{len(methods)} methods give the numbers of their authors' code, or of an independent reference, "
        f"in {len(cases)} "
        "cases: `pytest tests/parity` replays them."
    ]


def findings() -> str:
    """The list, by subject."""
    subjects = {
        "Which method": lambda: [*comparison(), *curves()],
        "How methods are told apart": pairing,
        "Time, memory, bytes": costs,
        "Matrix recovery": recovery,
        "Metrics of hidden states": metrics,
        "Sequence layers": s4d,
        "Pretraining": pretraining,
        "Federated training": federated,
        "Compression": compression,
        "Faithfulness": parity,
    }
    return "".join(
        f"\n## {title}\n\n" + "".join(f"- {line}\n" for line in find()) for title, find in subjects.items()
    )
