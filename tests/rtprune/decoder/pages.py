"""Text as pages have it, and as a decoder writes it that has lost its way: both in many varieties."""

from __future__ import annotations

import random
from collections.abc import Callable

SYLLABLES = [
    "ka",
    "lo",
    "mi",
    "ter",
    "ran",
    "sol",
    "ve",
    "nu",
    "pra",
    "ghi",
    "est",
    "or",
    "and",
    "uld",
    "bre",
    "ton",
    "cla",
    "shu",
    "wy",
    "zor",
    "fen",
    "dal",
    "que",
    "xi",
]
SIGNS = (
    "的一是不了在人有我他这为之大来以个中上们到说国和地也子时道出而要于"
    "就下得可你年生自会那后能对着事其里所去行过家十用发天如然作方成者多"
    "日都三小军二无同么经法当起与好看学进种将还分此心前面又定见只主没公"
    "从"
)
COMMON = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "it",
    "as",
    "was",
    "with",
    "be",
    "by",
    "on",
    "not",
    "he",
    "his",
    "but",
    "at",
    "are",
    "this",
    "have",
    "from",
]


def word(source: random.Random) -> str:
    return "".join(source.choices(SYLLABLES, k=source.randint(1, 4)))


def words(source: random.Random, low: int, high: int) -> str:
    return " ".join(word(source) for _ in range(source.randint(low, high)))


def prose(source: random.Random, low: int = 4, high: int = 14) -> str:
    """A sentence of common words and new ones."""
    picked = [
        source.choice(COMMON) if source.random() < 0.55 else word(source)
        for _ in range(source.randint(low, high))
    ]
    return " ".join(picked).capitalize() + "."


def price(source: random.Random) -> str:
    return f"{source.randint(0, 400)}.{source.choice(('00', '50', '95', '99'))}"


def row(cells: list[str], style: str) -> str:
    """One table row, as HTML or as markdown."""
    if style == "html":
        return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    return "| " + " | ".join(cells) + " |\n"


def table(rows: list[list[str]], style: str) -> str:
    body = "".join(row(cells, style) for cells in rows)
    return f"<table>{body}</table>\n" if style == "html" else body


# Pages


def similar_rows(source: random.Random) -> str:
    """A hundred rows and more that differ in a name or a number."""
    style = source.choice(("html", "markdown"))
    unit, state = word(source), [word(source) for _ in range(3)]
    kind = source.randrange(4)
    rows = []
    for index in range(source.randint(100, 160)):
        if kind == 0:
            cells = [str(index + 1), words(source, 1, 2), unit, price(source)]
        elif kind == 1:
            cells = [words(source, 1, 3), unit, unit, "yes"]
        elif kind == 2:
            cells = [f"2024-{index // 28 + 1:02d}-{index % 28 + 1:02d}", price(source), source.choice(state)]
        else:
            cells = [f"{unit}-{1000 + index}", str(source.randint(0, 9999)), "0.00", "0.00"]
        rows.append(cells)
    return table(rows, style)


def few_values(source: random.Random) -> str:
    """A hundred numbered rows whose cells are picked from a few short values."""
    style = source.choice(("html", "markdown"))
    values = source.choice(
        (["yes", "no"], ["A", "B", "C", "D"], ["x", ""], ["0", "1"], ["present", "absent", "ill"])
    )
    columns = source.randint(2, 12)
    rows = [[str(index + 1), *source.choices(values, k=columns)] for index in range(100)]
    return table(rows, style)


def equal_rows(source: random.Random) -> str:
    """A hundred rows that don't differ at all."""
    cells = [word(source)[:6], source.choice(("0", "0.00", "-", "n/a"))][: source.randint(1, 2)]
    return table([cells] * 100, source.choice(("html", "markdown")))


def blank_form(source: random.Random) -> str:
    """An empty form: numbered or not, up to 60 rows and 12 columns."""
    columns, numbered = source.randint(2, 12), source.random() < 0.5
    rows = [
        [str(index + 1) if numbered else "", *[""] * (columns - 1)] for index in range(source.randint(20, 60))
    ]
    head = [word(source) for _ in range(columns)]
    return table([head, *rows], source.choice(("html", "markdown")))


def numbered_list(source: random.Random) -> str:
    """Two hundred items."""
    mark = source.choice((". ", ") ", " - "))
    low, high = source.choice(((1, 1), (1, 3), (3, 9)))
    return "".join(f"{index}{mark}{words(source, low, high)}\n" for index in range(1, 201))


def answer_sheet(source: random.Random) -> str:
    """Up to two hundred lines of nothing but a number and the same marks."""
    marks = source.choice(("A B C D", "A B C D E", "☐", "____", "(a) (b) (c)"))
    return "".join(f"{index}. {marks}\n" for index in range(1, source.randint(100, 200)))


def index_pages(source: random.Random) -> str:
    """A book's index."""
    lines = []
    for _ in range(source.randint(100, 250)):
        numbers = sorted(source.sample(range(1, 500), source.randint(1, 5)))
        lines.append(f"{words(source, 1, 2)}, {', '.join(map(str, numbers))}\n")
    return "".join(lines)


def price_list(source: random.Random) -> str:
    """Articles with few different prices."""
    prices = [price(source) for _ in range(4)]
    kind = word(source).capitalize()
    return "".join(
        f"{kind} {words(source, 1, 2)} {source.choice(('S', 'M', 'L', 'XL'))} {source.choice(prices)} €\n"
        for _ in range(source.randint(80, 150))
    )


def contents(source: random.Random) -> str:
    """A table of contents with dot leaders of every kind."""
    leader = source.choice((".", ". ", "·", "_", " .", "…", "\\ldots "))
    lines, at = [], 1
    for index in range(source.randint(30, 70)):
        at += source.randint(0, 9)
        dots = leader * source.randint(8, 90)
        lines.append(f"{index // 8 + 1}.{index % 8 + 1} {words(source, 1, 5)} {dots} {at}\n")
    return "".join(lines)


def number_table(source: random.Random) -> str:
    """Numbers in rows and columns: random, rising by nearly equal steps, or mostly zero."""
    kind, columns = source.randrange(3), source.randint(4, 12)
    rows, value = [], 0
    for index in range(source.randint(20, 60)):
        cells = [f"{1 + index / 10:.1f}"]
        for _ in range(columns):
            value += source.choice((42, 43, 43, 43))
            cells.append(
                (str(source.randint(0, 99)), f"{value:05d}", source.choice(("0.00", "0.00", price(source))))[
                    kind
                ]
            )
        rows.append(cells)
    return table(rows, source.choice(("html", "markdown")))


def calendar(source: random.Random) -> str:
    """Twelve months of days, or the days of a year one after the other."""
    if source.random() < 0.5:
        return table([[str(day) for day in range(first, first + 14)] for first in range(1, 365, 14)], "html")
    out = []
    for month in range(12):
        first = source.randrange(7)
        days = ["Mo", "Tu", "We", "Th", "Fr", "Sa", "Su", *[""] * first, *map(str, range(1, 29 + month % 4))]
        weeks = [days[start : start + 7] for start in range(0, len(days), 7)]
        out.append(f"## {word(source)}\n" + table(weeks, source.choice(("html", "markdown"))))
    return "".join(out)


def labels(source: random.Random) -> str:
    """A sheet of equal address labels, or the same form two to four times."""
    if source.random() < 0.5:
        street = f"{word(source)} {source.randint(1, 99)}"
        label = f"{words(source, 2, 2)}\n{street}\n{source.randint(10000, 99999)}\n\n"
        return label[:60] * source.randint(8, 30)
    form = " ".join(prose(source) for _ in range(source.randint(5, 30)))
    return (form + "\n\n") * source.randint(2, 4)


def boxes(source: random.Random) -> str:
    """Regions with their boxes, as the grounding prompt gives them."""
    out, y = [], 20
    for _ in range(source.randint(30, 120)):
        height = source.choice((12, 12, 12, 24, 60))
        out.append(f"<|ref|>text<|/ref|><|det|>[[80, {y}, 920, {y + height}]]<|/det|>\n{prose(source)}\n\n")
        y += height + 3
    return "".join(out)


def chapters(source: random.Random) -> str:
    """Prose, Chinese now and then."""
    if source.random() < 0.3:
        return "".join("".join(source.choices(SIGNS, k=source.randint(6, 30))) + "。" for _ in range(60))
    return " ".join(prose(source) for _ in range(source.randint(40, 150)))


def code(source: random.Random) -> str:
    """A listing: numbered lines, brackets, an array of zeros."""
    lines = [
        f"{'    ' * source.randrange(4)}{word(source)} = {word(source)}({source.randint(0, 9)});"
        for _ in range(60)
    ]
    zeros = ["{ 0, 0, 0, 0 }," for _ in range(source.randint(4, 30))]
    return "".join(f"{number + 1:3d} {line}\n" for number, line in enumerate([*lines, *zeros]))


def register(source: random.Random) -> str:
    """Hundreds of numbered rows, each of another name."""
    return "".join(
        row([str(index), word(source).title(), word(source), price(source)], "markdown")
        for index in range(1, 501)
    )


def column_of_numbers(source: random.Random) -> str:
    """A count, of one step, or numbers of one length."""
    if source.random() < 0.5:
        return "".join(f"{index}\n" for index in range(source.randint(0, 20), 420))
    return "".join(f"{source.randint(100, 99999)}\n" for _ in range(600))


def zeros(source: random.Random) -> str:
    """A table of zeros whose rows have names."""
    style, columns = source.choice(("html", "markdown")), source.randint(3, 14)
    empty = source.choice(("0", "0.00", "-", "0 %"))
    return table([[word(source) + word(source), *[empty] * columns] for _ in range(300)], style)


def telephones(source: random.Random) -> str:
    """A directory, sorted by number or by name."""
    first, shape = source.randint(1, 900), source.choice(("555-{:04d} {}\n", "{1} ..... 0123 {0:03d}\n"))
    return "".join(shape.format(first + index, word(source) + " " + word(source)) for index in range(250))


def one_field(source: random.Random) -> str:
    """Long rows that differ in one number, which jumps."""
    start, step = source.randint(0, 999), source.choice((37, 41, 53, 97, 211))
    cells = [words(source, 2, 4), words(source, 1, 2)]
    return table([[*cells, f"{(start + index * step) % 1000:03d}"] for index in range(250)], "html")


def tick_boxes(source: random.Random) -> str:
    """Labels in rows: A1 B1 C1, A2 B2 C2."""
    letters = "ABCDEFGH"[: source.randint(2, 6)]
    return "".join(f"[ ] {c}{n}\n" for n in range(1, 220 // len(letters)) for c in letters)


def days(source: random.Random) -> str:
    """A line for each day of a year, and a timetable."""
    dates = "".join(f"2024-{month:02d}-{day:02d}\n" for month in range(1, 13) for day in range(1, 30))
    times = "".join(
        f"| {hour:02d}:{minute:02d} | {hour:02d}:{(minute + 7) % 60:02d} | {source.choice('ABC')} |\n"
        for hour in range(5, 24)
        for minute in range(0, 60, 10)
    )
    return dates + times


def survey(source: random.Random) -> str:
    """Answers from 1 to 5, without numbers of rows."""
    columns = source.randint(3, 10)
    rows = [[str(source.randint(1, 5)) for _ in range(columns)] for _ in range(200)]
    return table(rows, source.choice(("html", "markdown")))


def products(source: random.Random) -> str:
    """A multiplication table, as sentences or as a square."""
    if source.random() < 0.5:
        return "".join(f"{a} x {b} = {a * b}\n" for a in range(1, 13) for b in range(1, 13))
    return table([[str(a * b) for b in range(1, 16)] for a in range(1, 16)], "markdown")


def dump(source: random.Random) -> str:
    """Bytes in hexadecimal, with their addresses."""
    return "".join(
        f"{16 * line:08x}  " + " ".join(f"{source.randint(0, 255):02x}" for _ in range(16)) + "\n"
        for line in range(120)
    )


def sign_list(source: random.Random) -> str:
    """Names in Chinese with numbers."""
    return "".join(
        "".join(source.choices(SIGNS, k=3)) + f" {source.randint(100, 999)}-{source.randint(0, 9999):04d}\n"
        for _ in range(300)
    )


PAGES: dict[str, Callable[[random.Random], str]] = {
    each.__name__: each
    for each in (
        similar_rows,
        few_values,
        equal_rows,
        blank_form,
        numbered_list,
        answer_sheet,
        index_pages,
        price_list,
        contents,
        number_table,
        calendar,
        labels,
        boxes,
        chapters,
        code,
        register,
        column_of_numbers,
        zeros,
        telephones,
        one_field,
        tick_boxes,
        days,
        survey,
        products,
        dump,
        sign_list,
    )
}


def page(source: random.Random) -> str:
    """A page of several kinds of text, one after the other."""
    return "".join(PAGES[name](source) + "\n" for name in source.sample(sorted(PAGES), source.randint(1, 3)))


# Loops. Each takes the number of copies and returns the copies only.


def loop_line(source: random.Random, copies: int) -> str:
    return (prose(source, 5, 20) + source.choice(("\n", " "))) * copies


def loop_word(source: random.Random, copies: int) -> str:
    return (word(source) + source.choice((" ", ", ", "\n"))) * copies


def loop_paragraph(source: random.Random, copies: int) -> str:
    return (" ".join(prose(source) for _ in range(source.randint(4, 12))) + "\n\n") * copies


def loop_cells(source: random.Random, copies: int) -> str:
    return f"<td>{source.choice(('', '', '-', '0', word(source)))}</td>" * copies


def loop_rows(source: random.Random, copies: int) -> str:
    cells = [source.choice(("", "", "0", "-", word(source))) for _ in range(source.randint(1, 6))]
    return row(cells, source.choice(("html", "markdown"))) * copies


def loop_climb(source: random.Random, copies: int) -> str:
    """1. 2. 3., 0.01 0.02, years, steps of five, and numbered copies of one line."""
    start, step = source.randint(0, 50), source.choice((1, 1, 1, 2, 5, 10))
    shape = source.choice(
        ("{}. ", "{}.\n", "{} ", "{}, ", "({}) ", "<td>{}</td>", "{}. " + prose(source, 2, 6) + "\n")
    )
    scale = source.choice((1, 1, 10, 100))
    values = (start + step * index for index in range(copies))
    return "".join(
        shape.format(value if scale == 1 else f"{value / scale:.{len(str(scale)) - 1}f}") for value in values
    )


def loop_climbing_rows(source: random.Random, copies: int) -> str:
    """Numbered rows that say the same, with a second number that climbs as well."""
    same = word(source)
    return "".join(row([str(index), same, f"{index * 5}.00", ""], "html") for index in range(1, copies + 1))


def loop_symbols(source: random.Random, copies: int) -> str:
    return source.choice((".", ". ", "-", "_", " ", "\n", "·", "…", "= ", "│")) * (copies * 4)


def loop_small_changes(source: random.Random, copies: int) -> str:
    """A line of which one word or sign changes now and then, or that gains or loses one."""
    line = [word(source) + source.choice(SYLLABLES) for _ in range(source.randint(10, 18))]
    others = [word(source) for _ in range(3)]
    out = []
    for _ in range(copies):
        copy, at, kind = list(line), source.randrange(len(line)), source.randrange(6)
        if kind == 0:
            copy[at] = source.choice(others)
        elif kind == 1:
            copy[at] = copy[at][:-1] + source.choice("aeinst")
        elif kind == 2:
            copy.insert(at, source.choice(others))
        elif kind == 3:
            del copy[at]
        elif kind == 4:
            copy[at] += source.choice(",;:")
        out.append(" ".join(copy) + source.choice(".!") + "\n")
    return "".join(out)


def loop_boxes(source: random.Random, copies: int) -> str:
    x, height = source.randint(0, 300), source.randint(8, 30)
    label = source.choice(("text", "title", "image"))
    return "".join(
        f"<|ref|>{label}<|/ref|><|det|>[[{x}, {index * height}, {x + 500}, {index * height + height}]]<|/det|>\n"
        for index in range(copies)
    )


def loop_wandering_boxes(source: random.Random, copies: int) -> str:
    """A box that drifts, with nothing in it."""
    box, out = [100, 200, 300, 260], []
    label = source.choice(("text", "image"))
    for _ in range(copies):
        box = [min(999, max(0, each + source.choice((-3, -1, 0, 2)))) for each in box]
        out.append(f"<|ref|>{label}<|/ref|><|det|>[{box}]<|/det|>\n")
    return "".join(out)


def loop_other_order(source: random.Random, copies: int) -> str:
    """The same words in another order each time."""
    line, end = [word(source) for _ in range(source.randint(6, 16))], source.choice((". ", "\n"))
    return "".join(" ".join(source.sample(line, len(line))) + end for _ in range(copies))


def loop_digits(source: random.Random, copies: int) -> str:
    """-7 -77 -777, in any order."""
    digit, sign = source.choice("123456789"), source.choice(("-", "+", ""))
    return " ".join(sign + digit * source.randint(1, 3) for _ in range(copies * 3))


LOOPS: dict[str, Callable[[random.Random, int], str]] = {
    each.__name__: each
    for each in (
        loop_line,
        loop_word,
        loop_paragraph,
        loop_cells,
        loop_rows,
        loop_climb,
        loop_climbing_rows,
        loop_symbols,
        loop_small_changes,
        loop_boxes,
        loop_wandering_boxes,
        loop_other_order,
        loop_digits,
    )
}
