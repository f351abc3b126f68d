"""`kvant evaluate`: variants against their full-precision model, in one table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvant.cli import console
from kvant.cli.given import refuse
from kvant.cli.stored import complete_model, model_path
from kvant.units import counted, format_bytes

if TYPE_CHECKING:
    from kvant.evaluate.score import VariantScore
    from kvant.model import Model
    from kvant.recipes.measure.embeddings import VectorComparison
    from kvant.recipes.measure.evaluate import Comparison
    from kvant.recipes.measure.parity import Parity
    from kvant.recipes.measure.rerankers import RankComparison

COLUMNS = (
    "variant", "size", "bpw", "tokens", "KLD", "± SE", "median", "99 %", "top-1 %", "Δp RMS %", "ppl", "ratio",
    "pp tok/s", "tg tok/s", "RAM",
)  # fmt: skip
VECTOR_COLUMNS = ("variant", "size", "bpw", "distance", "99 %", "top-10 overlap %", "own first %")

RANK_COLUMNS = ("variant", "size", "bpw", "score difference", "99 %", "same order %", "same first %", "own first %")


def evaluate(
    options: typer.Context,
    variants: Annotated[
        list[Path],
        typer.Argument(
            help="GGUF files or stored models to measure.", autocompletion=complete_model, show_default=False
        ),
    ],
    against: Annotated[
        Path,
        typer.Option(
            help="Full-precision model: Hugging Face directory, or GGUF of F32, BF16 or F16.", show_default=False
        ),
    ],
    text: Annotated[
        Path | None, typer.Option(help="UTF-8 file to measure on, instead of a bundled corpus.", show_default=False)
    ] = None,
    corpus: Annotated[str, typer.Option(help="Bundled corpus; its held-out half is used.")] = "default",
    context: Annotated[int, typer.Option(min=16, help="Tokens per window; the second half of each is scored.")] = 512,
    chunks: Annotated[int, typer.Option(min=0, help="Most windows; 0 for all the text holds.")] = 16,
    threads: Annotated[int, typer.Option(min=0, help="Threads; 0 for one per core.")] = 0,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="Measure quality alone.")] = False,
    no_floors: Annotated[bool, typer.Option("--no-floors", help="Leave the sanity floors out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Measure how far variants are from the model they were made from, and how fast they run.

    Each variant's engine also reads texts and chat prompts, and its tokens are compared with those of the original's
    own tokenizer (tokenizer.json): "tokens" says "same", or "DIFFER", and then what differs stands below the table.

    Of a model that makes vectors of texts (BERT, embedding models) the vectors are compared: cosine distance, and how
    many of the original's 10 nearest passages each variant finds for a query. Of a reranker the scores of pairs are
    compared: how far they are, and whether a query's passages come in the same order.

    KLD is the KL divergence of the next-token distribution in nats: 0 is the same model. The base's logits are computed
    once per text and kept under ~/.kvant/cache, which can be deleted at any time.

    \b
    Examples:
      kvant evaluate small-Q4_K_M.gguf small-Q3_K_M.gguf --against SmolLM2-135M
      kvant evaluate small-Q4_K_M.gguf --against SmolLM2-135M --text book.txt --chunks 0
    """  # noqa: D301 - \b keeps the lines of the examples apart
    from kvant.formats.gguf.kinds import makes_vectors, reranks
    from kvant.recipes.measure.evaluate import evaluate as run
    from kvant.recipes.source import open_model

    if text is not None:
        refuse(options, ("corpus",), "is a bundled text, and --text gives another")
    with console.progress(quiet=json) as progress:
        base = open_model(model_path(against), progress=progress)
    if makes_vectors(base) or reranks(base):
        why = f"is about text that a model writes, and this one {'scores pairs' if reranks(base) else 'makes vectors'}"
        refuse(options, ("context", "chunks", "no_speed", "no_floors"), why)
        _show_reading(variants, base, text, corpus, threads, json=json)
        return
    with console.progress(quiet=json) as progress:
        result = run(
            [model_path(v) for v in variants], against=base,
            text=text, corpus=corpus, context=context, chunks=chunks, threads=threads,
            speed=not no_speed, floors=not no_floors, progress=progress,
        )  # fmt: skip
    if json:
        console.print_json(result)
        return
    rows = [_row(score, read) for score, read in zip(result.scores, result.tokenizers, strict=True)]
    console.table(_title(result), COLUMNS, rows)
    domains = sorted({name for score in result.scores for name in score.domains})
    if len(domains) > 1:
        rows = [
            (s.name, *(f"{s.domains[d].kld_mean:.4f} ± {s.domains[d].kld_se:.4f}" for d in domains))
            for s in result.scores
        ]
        console.table("KLD by domain", ("variant", *domains), rows)
    for line in notes(result):
        console.say(line)


def _show_reading(
    variants: list[Path], base: "Model", text: Path | None, corpus: str, threads: int, *, json: bool
) -> None:
    """Measure variants of a model that writes no text, and print what they lose."""
    from kvant.formats.gguf.kinds import reranks
    from kvant.recipes.measure.embeddings import evaluate_embeddings
    from kvant.recipes.measure.rerankers import evaluate_rerankers

    measure: Any = evaluate_rerankers if reranks(base) else evaluate_embeddings
    paths = list(map(model_path, variants))
    with console.progress(quiet=json) as progress:
        found = measure(paths, against=base, text=text, corpus=corpus, threads=threads, progress=progress)
    if json:
        console.print_json(found)
    else:
        (show_ranks if reranks(base) else show_vectors)(found)


def show_vectors(result: "VectorComparison") -> None:
    """Print how far vectors of variants are from their original's."""
    rows = [
        (
            v.name, format_bytes(v.size_bytes), f"{v.bpw:.2f}", f"{v.score.distance_mean:.6f}",
            f"{v.score.distance_p99:.6f}", f"{100 * v.score.overlap:.2f}", f"{100 * v.score.found:.1f}",
        )
        for v in result.scores
    ]  # fmt: skip
    title = f"{Path(result.base).name} (F32) on {result.text}: {counted(result.pairs, 'pair')} of query and passage"
    console.table(title, VECTOR_COLUMNS, rows)
    if result.scores:
        one = result.scores[0].score
        console.say(f"Own passage first by the original's vectors: {100 * one.found_original:.1f} % of queries.")
    console.say(f"{result.engine}; text SHA-256 {result.text_sha256[:16]}, base {result.base_identity[:16]}")


def show_ranks(result: "RankComparison") -> None:
    """Print how far scores of variants are from their original's, and whether they rank alike."""
    rows = [
        (
            v.name, format_bytes(v.size_bytes), f"{v.bpw:.2f}", f"{v.score.difference_mean:.5f}",
            f"{v.score.difference_p99:.5f}", f"{100 * v.score.order:.1f}", f"{100 * v.score.first:.1f}",
            f"{100 * v.score.found:.1f}",
        )
        for v in result.scores
    ]  # fmt: skip
    one = result.scores[0].score
    title = f"{Path(result.base).name} (F32) on {result.text}: {one.n_queries} queries of {one.n_documents} passages"
    console.table(title, RANK_COLUMNS, rows)
    own = f"own passage first: {100 * one.found_original:.1f} % of queries"
    console.say(f"The original's scores spread by {one.spread:.5f}; {own}.")
    console.say(f"{result.engine}; text SHA-256 {result.text_sha256[:16]}, base {result.base_identity[:16]}")


def _title(result: "Comparison") -> str:
    return (
        f"{Path(result.base).name} (original, ppl {result.base_ppl:.2f}) on {result.text}: "
        f"{counted(result.chunks, 'window')} of {result.context} tokens, {result.n_positions} scored"
    )


def _row(score: "VariantScore", read: "Parity") -> tuple[str, ...]:
    def maybe(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    return (
        score.name, format_bytes(score.size_bytes), f"{score.bpw:.2f}", tokens_in_words(read),
        f"{score.kld_mean:.5f}", f"{score.kld_se:.5f}",
        f"{score.kld_median:.5f}", f"{score.kld_p99:.3f}", f"{100 * score.top1:.2f}", f"{100 * score.rms_dp:.2f}",
        f"{score.ppl:.3f}", f"{score.ppl_ratio:.4f}", maybe(score.pp_tok_s, ".0f"), maybe(score.tg_tok_s, ".1f"),
        "-" if score.rss_bytes is None else format_bytes(score.rss_bytes),
    )  # fmt: skip


def tokens_in_words(read: "Parity") -> str:
    """Say in a word whether a variant reads text as the original does."""
    return "?" if read.not_compared else "same" if read.is_same else "DIFFER"


def notes(result: "Comparison") -> list[str]:
    """Return what is said below the table: tokens that differ, what degraded variants lost, floors, energy, origin."""
    from kvant.recipes.measure.sample import as_lines
    from kvant.recipes.measure.words import cost_in_words, is_degraded, tokenizer_warnings

    lines = [
        line
        for score, read in zip(result.scores, result.tokenizers, strict=False)
        for line in tokenizer_warnings(score.name, read)
    ]
    lines += [f"{s.name} is {cost_in_words(s)}." for s in result.scores if is_degraded(s)]
    lines += as_lines(result.samples) if result.samples else []
    lines += [
        f"Floor {f.name}: KLD {f.kld_mean:.6f} ± {f.kld_se:.6f}, top-1 {100 * f.top1:.2f} % ({f.n_positions} tokens)"
        for f in result.floors
    ]
    energies = {s.energy_j_per_token: s.energy_reason for s in result.scores}
    if None in energies:
        lines.append(f"Energy per token: not measured; {energies[None]}.")
    else:
        lines.extend(f"Energy: {s.name} {s.energy_j_per_token:.3f} J per token" for s in result.scores)
    machine = result.machine
    lines.append(
        f"{machine['cpu']}, {result.n_threads} threads; {result.versions['engine']}; kvant {result.versions['kvant']}"
    )
    lines.append(f"Text SHA-256 {result.text_sha256[:16]}, base {result.base_identity[:16]}")
    return lines
