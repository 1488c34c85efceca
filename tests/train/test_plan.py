"""The plan of a run: every token once, stops where they are due, and the same plan from wherever it is resumed."""

from functools import partial
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.optim.batch_growth import size_at, walk
from jaxlab.optim.schedules import crossed, reached
from jaxlab.train.plan import Batch, blocks
from jaxlab.train.state import Clock

FAR = 2**31 + 11  # beyond a 32-bit position, in tokens and, with a context of 1, in sequences


@st.composite
def plans(draw):
    start = draw(st.sampled_from([0, 1, FAR]))
    context = draw(st.integers(1, 4))
    batches = st.builds(lambda sequences: Batch(sequences * context, context), st.integers(1, 5))
    later = st.dictionaries(st.integers(start + 1, start + 150), batches, max_size=3)
    stops = st.one_of(st.just(0), st.integers(1, 240))
    return {
        "clock": Clock(start, start // context),
        "total_tokens": start + draw(st.integers(0, 400)),
        "batch_at": partial(size_at, {0: draw(batches)} | draw(later)),
        "most_steps": draw(st.integers(1, 7)),
        "stops": tuple(draw(st.lists(stops, max_size=3))),
        "hypers": lambda tokens, batch: {"lr": tokens, "weight_decay": -batch},
    }


def steps(plan):
    """(first token, last token + 1, learning rate, decay) of every step, whatever the blocks."""
    found = []
    for block in blocks(**plan):
        for i in range(block.count):
            first = block.start.tokens + i * block.batch.tokens
            found.append((first, first + block.batch.tokens, block.hypers["lr"][i], block.hypers["weight_decay"][i]))
    return found


@settings(max_examples=150, deadline=None)
@given(plans())
def test_blocks_partition_the_tokens(plan):
    clock, at = plan["clock"], plan["batch_at"]
    position = clock
    for block in blocks(**plan):
        assert block.start == position
        assert 1 <= block.count <= plan["most_steps"]
        assert block.end.tokens - block.start.tokens == block.count * block.batch.tokens
        assert block.end.steps - block.start.steps == block.count
        assert all(len(values) == block.count for values in block.hypers.values())
        position = block.end
    assert position.tokens <= plan["total_tokens"] < position.tokens + at(position.tokens).tokens
    assert all(isinstance(n, int) for n in position)


@settings(max_examples=150, deadline=None)
@given(plans())
def test_every_step_has_the_batch_of_where_it_starts(plan):
    """Walked one step at a time."""
    token, wanted = plan["clock"].tokens, []
    while token + (size := plan["batch_at"](token).tokens) <= plan["total_tokens"]:
        wanted.append((token, token + size, token + size / 2, -size))
        token += size
    assert steps(plan) == wanted


@settings(max_examples=150, deadline=None)
@given(plans(), st.integers(1, 50))
def test_steps_do_not_depend_on_how_many_are_in_a_block(plan, most_steps):
    assert steps(plan) == steps(plan | {"most_steps": most_steps, "stops": ()})


@settings(max_examples=150, deadline=None)
@given(plans())
def test_a_block_ends_at_the_first_step_that_reaches_a_stop(plan):
    """By brute force over all multiples."""
    found = list(blocks(**plan))
    ends = {block.end.tokens for block in found}
    starts_and_ends = [(first, last) for first, last, *_ in steps(plan)]
    due = set()
    for every in filter(None, plan["stops"]):
        for first, last in starts_and_ends:
            if any(token % every == 0 for token in range(first + 1, last + 1)):
                due.add(last)
    assert due <= ends
    full = {block.end.tokens for block in found if block.count == plan["most_steps"]}
    final = {starts_and_ends[-1][1]} if starts_and_ends else set()
    assert ends == due | full | final | other_sizes(found)  # and no block ends without a reason


def other_sizes(found):
    """Ends of blocks after which another batch is taken."""
    return {a.end.tokens for a, b in pairwise(found) if a.batch != b.batch}


@settings(max_examples=100, deadline=None)
@given(plans(), st.data())
def test_resumed_at_the_end_of_any_block_the_rest_is_the_same(plan, data):
    whole = list(blocks(**plan))
    i = data.draw(st.integers(0, len(whole)))
    clock = whole[i - 1].end if i else plan["clock"]
    assert list(blocks(**plan | {"clock": clock})) == whole[i:]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 200), st.integers(0, 60))
def test_crossed(before, by, every):
    multiples = [t for t in range(before + 1, before + by + 1) if every and t % every == 0]
    assert crossed(before, before + by, every) == bool(multiples)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.lists(st.integers(0, 130)))
def test_reached(before, by, points):
    assert reached(before, before + by, sorted(points)) == any(p in points for p in range(before + 1, before + by + 1))


@settings(max_examples=100, deadline=None)
@given(plans())
def test_steps_are_counted_without_taking_them(plan):
    """What the header says of a run before it starts."""
    plan |= {"clock": Clock()}
    sizes = {tokens: batch.tokens for tokens, batch in plan["batch_at"].args[0].items()}
    if plan["total_tokens"] < FAR:
        end = ([Clock()] + [block.end for block in blocks(**plan)])[-1]
        taken = walk(sizes, plan["total_tokens"])
        assert end == (sum(s.steps * s.size for s in taken), sum(s.steps for s in taken))
