"""What only the order of kernels on a stream can say: the router's GEMM, nameless experts, the pieces of a norm and of
attention."""

from __future__ import annotations

import re
from collections.abc import Iterator

import polars
from polars import col

from harness.kernels.taxonomy import Label, function_of, spelled_alike, words_of

# What an operation can be part of. The pieces of PyTorch come last.
GEMM, BATCHED, SPLIT, ROUTER, EXPERT, CHOICE, ATTENTION, END = range(1, 9)  # a core; up to EXPERT a product
UNKNOWN, PIECE, POW, MEAN, ADD, RSQRT, MUL, COPY = range(9, 17)

ROW = {"row": polars.UInt32, "role": polars.UInt8, "label": polars.UInt16}
WINDOW = [CHOICE, ATTENTION, END]  # what begins another
AT_ONCE = 1_000_000  # operations looked at together: each has a dozen intermediate columns

_CHOICE = re.compile(r"\b(topk\w*|gating\w*|routing\w*|router\w*|moe (softmax|sigmoid)|fused gate|gate select)\b")
_NOT_A_CHOICE = re.compile(r"\b(finalize|sum|align|permute|memset|backward)\b")
_GATHERED = re.compile(r"\bindex\b")
_PREPARES = re.compile(r"\b(prepare|slot mapping|metadata)\b")  # a whole step's attention, before its first layer
_SMALL = re.compile(r"at::|at_cuda|cub::|softmax_warp|^triton_(poi|per|red)_")  # parts of anything
_SPLIT = re.compile(r"split ?k ?reduce|\breduce 1 ?block\b")
_PIECES = (
    (RSQRT, re.compile(r"\brsqrt\b")),
    (POW, re.compile(r"\bpow\b")),
    (MEAN, re.compile(r"\bmean ?ops\b|\bmean\b")),
    (ADD, re.compile(r"\bfunctor\w* (on self )?add\b|\badd\b")),
    (MUL, re.compile(r"\bmul functor\b|\bmul\b")),
    (COPY, re.compile(r"\bcopy\b")),
)


def role_of(name: str, label: Label, batched: bool) -> int:
    """What a kernel can be in an order of kernels; 0: nothing. `batched`: PyTorch's bmm launched it."""
    spelled = spelled_alike(name)
    function = words_of(function_of(spelled))
    if label.category == "dense_gemm" and label.found_by == "name":
        return SPLIT if _SPLIT.search(function) else BATCHED if batched else GEMM
    if label.category in ("gate_gemm", "expert_gemm"):
        return ROUTER if label.category == "gate_gemm" else EXPERT
    loose = label.category == "other" or (label.confidence == "low" and label.category != "attention")
    if label.category == "routing_permute" or (loose and label.category == "sampling"):
        if _CHOICE.search(function) and not _NOT_A_CHOICE.search(function):
            return CHOICE
    if label.category in ("norm", "attention") and label.confidence != "low":
        return END if label.category == "norm" else 0 if _PREPARES.search(function) else ATTENTION
    if label.found_by == "none":
        return UNKNOWN
    if not loose or label.found_by != "name" or not _SMALL.search(spelled):
        return 0
    words = words_of(spelled)
    if _GATHERED.search(words):  # and added up: a token's experts, whose sum is no residual
        return PIECE
    return next((role for role, pattern in _PIECES if pattern.search(words)), PIECE)


def by_position(ops: polars.DataFrame, labels: dict[Label, int]) -> polars.DataFrame:
    """`ops` with labels that position gives, where a name alone could not. New labels are added to `labels`.

    ops: columns device, stream, label and role, ordered by start within a device. What a module said stays.
    """
    present = set(ops["role"].unique())
    has_experts = CHOICE in present and present & {GEMM, BATCHED, EXPERT}
    if not (has_experts or {RSQRT, MEAN, POW} <= present or ATTENTION in present):
        return ops
    found = [polars.DataFrame(schema={"row": polars.UInt32, "new": polars.UInt16})]
    for rows in _pieces(ops):
        for step in (_norms, _experts, _attention):
            rows = step(rows, labels)
        found.append(rows.filter(col("new").is_not_null() & col("row").is_not_null()).select("row", "new"))
    new = polars.concat(found)
    return ops.with_columns(ops["label"].scatter(new["row"], new["new"])) if len(new) else ops


def _pieces(ops: polars.DataFrame) -> Iterator[polars.DataFrame]:
    """Operations that have a role, stream by stream, some AT_ONCE at a time, each piece from one END to another: nothing
    is read across those."""
    border = polars.DataFrame({"row": [None], "role": [END], "label": [None]}, ROW)
    for own in _streams(ops):
        at = own.arg_true().alias("row")
        rows = polars.DataFrame([at, ops["role"].gather(at), ops["label"].gather(at)])
        ends = (rows["role"] == END).arg_true()
        first = 0
        while first < len(rows):
            end = ends.search_sorted(first + AT_ONCE)
            until = ends[end] if end < len(ends) else len(rows)
            yield polars.concat([border, rows.slice(first, until - first)]).with_columns(
                new=polars.lit(None, ROW["label"])
            )
            first = until


def _streams(ops: polars.DataFrame) -> Iterator[polars.Series]:
    """Of each device and stream which operations are its own and have a role."""
    has_role = ops["role"] > 0
    for device in ops["device"].unique().sort():
        on_device = has_role & (ops["device"] == device)
        for stream in ops["stream"].filter(on_device).unique().sort():
            yield on_device & (ops["stream"] == stream)


def _norms(rows: polars.DataFrame, labels: dict[Label, int]) -> polars.DataFrame:
    """Square, mean, add epsilon, inverse root, multiply: PyTorch's RMSNorm in pieces, casts around it included."""
    role = col("role")
    root = (role == RSQRT) & (role.shift(1) == ADD) & (role.shift(2) == MEAN) & (role.shift(3) == POW)
    rows = rows.with_columns(root=root.fill_null(False))
    at = {steps: col("root").shift(steps, fill_value=False) for steps in range(-4, 4)}
    cast_back = at[3] & (role.shift(1) == COPY) | at[2] & (role != COPY)
    inside = (
        (at[-4] & (role == COPY) | at[-3] | at[-2] | at[-1] | at[0] | at[1] & (role == MUL))
        | at[2] & role.is_in([COPY, MUL])
        | (cast_back & (role == MUL))
    )
    index = _index(labels, "norm", "medium", "one of the pieces of a norm: square, mean, inverse root, product")
    inside = inside.fill_null(False) & (role >= PIECE)
    return rows.select(
        "row",
        "label",
        role=polars.when(inside).then(polars.lit(END, polars.UInt8)).otherwise(role),
        new=polars.when(inside).then(index).otherwise(col("new")),
    )


def _experts(rows: polars.DataFrame, labels: dict[Label, int]) -> polars.DataFrame:
    """What lies around a choice of experts: before it the router's GEMM, after it, until a norm or attention, theirs. A
    norm between a choice and experts that have a name ends nothing: what scales their FP8 inputs was fused with it."""
    role = col("role")
    core = polars.when(role < END).then(role)
    among = (core.shift(1).forward_fill() == CHOICE) & (core.shift(-1).backward_fill() == EXPERT) & (role == END)
    rows = rows.with_columns(role=polars.when(among.fill_null(False)).then(polars.lit(0, ROW["role"])).otherwise(role))
    rows = rows.with_columns(core=polars.when(role <= END).then(role))
    rows = rows.with_columns(
        before=col("core").shift(1).forward_fill(),
        after=col("core").shift(-1).backward_fill(),
        beyond=polars.when(col("core") != CHOICE).then(col("core")).shift(-1).backward_fill(),
    )
    # The sampler chooses too, but no product follows it before the next norm.
    rows = rows.with_columns(choice=(role == CHOICE) & (col("beyond") <= EXPERT).fill_null(False))
    rows = rows.with_columns(
        leads=polars.when(col("core").is_not_null()).then(col("choice")).shift(-1).backward_fill().fill_null(False),
        follows=polars.when(role.is_in(WINDOW)).then(col("choice")).forward_fill().fill_null(False),
        window=role.is_in(WINDOW).cum_sum(),
    )
    rows = rows.with_columns(router=col("leads") & role.is_in([GEMM, BATCHED, SPLIT, ROUTER]))
    ahead = polars.when(col("core").is_not_null()).then(col("router")).shift(-1).backward_fill().fill_null(False)
    rows = rows.with_columns(router=col("router") | (ahead & (col("after") == SPLIT) & role.is_in([GEMM, BATCHED])))
    choices = rows.select((col("choice") & (col("before") != CHOICE)).sum()).item()
    routers = rows.select((col("leads") & col("router")).sum()).item()
    often = choices > 0 and 2 * routers >= choices  # as often as experts are chosen, but for what is not seen
    rows = rows.with_columns(router=col("router") & (role != ROUTER) & often)

    products = [GEMM, BATCHED, SPLIT]
    own = rows.filter(col("follows") & role.is_in([*products, EXPERT, UNKNOWN])).group_by("window")
    own = own.agg(named=(role == EXPERT).any(), batched=(role == BATCHED).any(), unknown=(role == UNKNOWN).any())
    rows = rows.join(own, on="window", how="left", maintain_order="left")
    nameless = col("follows") & ~col("router") & role.is_in(products) & ~col("named")
    piece = role >= PIECE
    product_before, product_after = col("before") <= EXPERT, col("after") <= EXPERT
    moved = piece & col("follows") & ((col("before") == CHOICE) | product_before & (product_after | (role != ADD)))
    named = polars.Series([i for one, i in labels.items() if one.category == "routing_permute"], dtype=polars.UInt16)
    chosen = col("choice") & ~col("label").is_in(named.implode()) | piece & col("leads") & product_before & often
    found = (
        (col("router"), "gate_gemm", "medium", "the GEMM right before experts are chosen, as often as they are"),
        (
            nameless & (role == BATCHED),
            *("expert_gemm", "medium", "a batched product between the choice of experts and the next norm"),
        ),
        (
            nameless & ~col("batched") & ~col("unknown"),
            *("expert_gemm", "low", "a GEMM after the choice of experts, where no other kernel can be theirs"),
        ),
        (
            moved & product_before & product_after & (role == MUL),
            *("activation", "low", "a product of values between two products of the experts: the gate's"),
        ),
        (moved, "routing_permute", "low", "PyTorch's, between the choice of experts and the next norm"),
        (chosen, "routing_permute", "medium", "part of the choice of experts"),
    )
    new = col("new")
    for where, category, confidence, reason in reversed(found):
        index = _index(labels, category, confidence, reason)
        new = polars.when(where.fill_null(False)).then(index).otherwise(new)
    return rows.with_columns(new=new)


def _attention(rows: polars.DataFrame, labels: dict[Label, int]) -> polars.DataFrame:
    """Pieces between attention and the product or norm on either side of it: as where modules say so, attention's own.
    With a graph replayed no module does."""
    is_core, is_piece = col("role") <= END, col("role") >= PIECE
    core = polars.when(is_core).then("role")
    before, after = core.shift(1).forward_fill(), core.shift(-1).backward_fill()
    own = is_piece & col("new").is_null() & ((after == ATTENTION) | (before == ATTENTION) & (after <= EXPERT))
    index = _index(labels, "attention", "low", "PyTorch's, right beside attention: rotary embedding, the cache")
    return rows.with_columns(new=polars.when(own.fill_null(False)).then(index).otherwise("new"))


def _index(labels: dict[Label, int], category: str, confidence: str, reason: str) -> polars.Expr:
    return polars.lit(labels.setdefault(Label(category, "position", confidence, reason), len(labels)), polars.UInt16)
