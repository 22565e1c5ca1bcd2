"""The page's other views as people use them: layers, filters, the confusion matrix."""

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import FileChooser, Locator, Page, expect

from tests.support.browser import CNN, FC, OpenPage

pytestmark = pytest.mark.slow

LAYERS = [
    "pixels",
    *("conv1", "bn1", "relu1", "pool1", "conv2", "bn2", "relu2", "pool2"),
    *("fc1", "relu3", "fc2", "softmax"),
]
VIEWS = {
    "classify": "",
    "network": "?view=network&layer=conv1&channel=2",
    "filters": "?view=filters&layer=conv2&filter=3",
    "matrix": "?view=matrix&true=cat&predicted=dog",
}


def column(page: Page, layer: str) -> Locator:
    return page.get_by_role("listitem", name=re.compile(f"^{layer},"))


def maps(page: Page, layer: str) -> Locator:
    return column(page, layer).get_by_role("button", name="channel")


def panel(page: Page, channel: str) -> Locator:
    return page.get_by_role("region", name=channel)


def numbers(table: Locator) -> list[float]:
    cells = table.locator("td").all_inner_texts()
    return [float(text) for text in cells if text != "outside"]


def test_network_is_shown_from_pixels_to_probabilities(open_page: OpenPage) -> None:
    with open_page("?view=network") as page:
        expect(maps(page, "conv1").first).to_be_visible()
        titles = page.locator(".column h2").all_inner_texts()
        assert [title.split()[0] for title in titles] == LAYERS
        expect(column(page, "pixels").locator("canvas")).to_have_count(3)
        expect(maps(page, "conv1")).to_have_count(12)
        column(page, "conv1").get_by_role("button", name="all 32").click()
        expect(maps(page, "conv1")).to_have_count(32)
        probabilities = page.get_by_role("listitem", name="Probabilities")
        probabilities.scroll_into_view_if_needed()
        expect(probabilities).to_contain_text("dog 83.")


def test_pointing_at_a_map_shows_the_arithmetic_of_the_pixel(open_page: OpenPage) -> None:
    with open_page("?view=network") as page:
        target = maps(page, "conv1").nth(2).locator("canvas")
        expect(target).to_be_visible()
        target.hover(position={"x": 36, "y": 36})
        shown = panel(page, "Channel 2 of conv1")
        expect(shown).to_contain_text("Row 16, column 16")
        expect(shown.locator(".numbers")).to_have_count(6)
        formula = shown.locator(".formula").inner_text()
        terms, _, result = formula.rpartition("=")
        total = sum(float(term) for term in re.findall(r"-?\d+\.\d+(?:e-\d+)?", terms))
        assert total == pytest.approx(float(result), abs=0.01)
        products = []
        for product in shown.locator(".product").all():
            patch, weights = (numbers(table) for table in product.locator("table").all())
            products.append(sum(a * b for a, b in zip(patch, weights, strict=True)))
            said = float(product.inner_text().rpartition("=")[2])
            assert products[-1] == pytest.approx(said, abs=0.1)


def test_border_of_a_map_sees_outside_the_picture(open_page: OpenPage) -> None:
    with open_page("?view=network") as page:
        target = maps(page, "pool1").first.locator("canvas")
        target.hover(position={"x": 2, "y": 2})
        shown = panel(page, "Channel 0 of pool1")
        expect(shown).to_contain_text("Row 0, column 0")
        expect(shown).to_contain_text("the largest of")
        values = numbers(shown.locator(".numbers"))
        result = float(shown.locator(".formula").inner_text().rpartition("=")[2])
        assert max(values) == pytest.approx(result, abs=0.01)


def test_layer_before_is_marked_where_a_map_comes_from(open_page: OpenPage) -> None:
    with open_page("?view=network&layer=relu1&channel=4") as page:
        expect(panel(page, "Channel 4 of relu1")).to_contain_text("max(0,")
        expect(column(page, "bn1").locator(".feeds")).to_have_count(1)
        page.goto(page.url.replace("relu1", "conv1"))
        expect(column(page, "pixels").locator(".feeds")).to_have_count(3)


def test_normalisation_is_given_with_its_numbers(open_page: OpenPage) -> None:
    with open_page("?view=network&layer=bn1&channel=3&pixel=9,12") as page:
        shown = panel(page, "Channel 3 of bn1")
        expect(shown).to_contain_text("Row 9, column 12")
        formula = shown.locator(".formula").inner_text()
        before, scale, again, shift, result = map(float, re.findall(r"-?\d+\.\d+", formula))
        assert before == again
        assert scale * before + shift == pytest.approx(result, abs=0.005)


def test_pixel_that_is_clicked_stays_and_stands_in_the_address(open_page: OpenPage) -> None:
    with open_page("?view=network") as page:
        target = maps(page, "conv1").nth(2).locator("canvas")
        expect(target).to_be_visible()
        target.click(position={"x": 10, "y": 24})  # of 72 for 32 values
        shown = panel(page, "Channel 2 of conv1")
        expect(page.get_by_role("application")).to_be_focused()
        expect(shown).to_contain_text("Row 10, column 4")
        assert "pixel=10%2C4" in page.url
        page.keyboard.press("ArrowRight")
        expect(shown).to_contain_text("Row 10, column 5")
        page.reload()
        expect(shown).to_contain_text("Row 10, column 5")
        # What the filter sees is framed in the channels that it sees it in.
        expect(column(page, "pixels").locator("rect:not(.halo)")).to_have_count(3)
        frame = column(page, "pixels").locator("rect:not(.halo)").first
        assert [frame.get_attribute(name) for name in ("x", "y", "width")] == ["4", "9", "3"]


@pytest.mark.parametrize("close", ["button", "Escape"])
def test_map_is_let_go_and_stays_so(open_page: OpenPage, close: str) -> None:
    with open_page("?view=network") as page:
        target = maps(page, "conv1").nth(5)
        target.click()
        expect(panel(page, "Channel 5 of conv1")).to_be_visible()
        if close == "button":
            page.get_by_role("button", name="Close").click()
        else:
            page.keyboard.press("Escape")
        expect(panel(page, "Channel 5 of conv1")).to_have_count(0)
        expect(target).to_be_focused()
        assert "channel" not in page.url


def test_layers_have_the_whole_width_until_a_map_is_pointed_at(open_page: OpenPage) -> None:
    with open_page("?view=network", width=1280) as page:
        layers = page.get_by_role("group", name="Layers")
        target = maps(page, "pool2").nth(1)
        expect(target).to_be_visible()
        wide, before = layers.bounding_box(), target.bounding_box()
        assert wide
        assert before
        assert wide["width"] == 1280 - 2 * 16
        page.mouse.move(before["x"] + 36, before["y"] + 36)
        shown = panel(page, "Channel 1 of pool2").bounding_box()
        narrow, after = layers.bounding_box(), target.bounding_box()
        assert shown
        assert narrow
        assert after
        assert narrow["x"] + narrow["width"] < shown["x"]
        assert narrow["x"] <= after["x"]
        assert after["x"] + after["width"] <= narrow["x"] + narrow["width"]
        assert after["y"] == before["y"]


def test_colours_of_the_layers_are_explained(open_page: OpenPage) -> None:
    with open_page("?view=network") as page:
        said = "values above 0, below 0, white: 0"
        expect(page.get_by_role("region", name="The way through")).to_contain_text(said)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ("conv1", "a small filter slides over the maps before"),
        ("bn1", "each map is shifted and scaled"),
        ("relu1", "what is above 0 stays, everything else becomes 0"),
        ("pool1", "of each small square only the largest value stays"),
        ("fc1", "the sum of all numbers before, each times a weight of its own"),
    ],
)
def test_layer_that_is_chosen_is_explained(open_page: OpenPage, layer: str, said: str) -> None:
    with open_page(f"?view=network&layer={layer}&channel=0") as page:
        expect(panel(page, f"Channel 0 of {layer}")).to_contain_text(said)


def test_panel_hides_no_map(open_page: OpenPage) -> None:
    for width in (360, 1440):
        with open_page("?view=network&layer=conv1&channel=2", width=width) as page:
            shown = panel(page, "Channel 2 of conv1")
            expect(shown).to_contain_text("bias")
            expect(page.get_by_role("listitem", name="Probabilities")).to_contain_text("dog")
            layers = page.get_by_role("group", name="Layers").element_handle()
            panel_hides_layers = shown.evaluate(
                """(panel, layers) => {
                    const [a, b] = [panel, layers].map((one) => one.getBoundingClientRect());
                    return a.left < b.right && a.top < b.bottom;
                }""",
                layers,
            )
            assert not panel_hides_layers


def test_map_that_is_clicked_stays_and_stands_in_the_address(open_page: OpenPage) -> None:
    with open_page("?view=network") as page:
        maps(page, "conv1").nth(5).click()
        maps(page, "conv1").nth(1).hover()
        expect(panel(page, "Channel 5 of conv1")).to_be_visible()
        assert "layer=conv1" in page.url
        page.reload()
        expect(panel(page, "Channel 5 of conv1")).to_contain_text("bias")
        page.get_by_role("button", name="Close").click()
        expect(panel(page, "Channel 5 of conv1")).to_have_count(0)


def test_filter_that_is_clicked_shows_what_it_responds_to(open_page: OpenPage) -> None:
    with open_page("?view=filters") as page:
        page.get_by_role("button", name="filter 7", exact=True).click()
        detail = page.get_by_role("complementary", name="Filter 7 of conv1")
        expect(detail).to_contain_text("3×3×3 weights, bias")
        parts = detail.get_by_role("img")
        assert parts.evaluate("image => image.decode().then(() => image.naturalWidth)") > 30
        page.get_by_label("Layer").select_option("conv2")
        page.get_by_role("button", name="filter 63", exact=True).click()
        expect(page.get_by_role("complementary", name="Filter 63 of conv2")).to_be_visible()
        page.get_by_label("Model").select_option(FC)
        expect(page.get_by_text(f"{FC} has no convolutions to look into")).to_be_visible()


def test_filters_say_what_their_colours_mean(open_page: OpenPage) -> None:
    with open_page("?view=filters") as page:
        said = page.get_by_role("region", name="Filters")
        expect(said).to_contain_text("a small filter slides over the maps before")
        expect(said).to_contain_text("its weights for red, green and blue")
        page.get_by_label("Layer").select_option("conv2")
        expect(said).to_contain_text("Bright: where its weights are large")


def test_empty_cell_is_said_to_be_zero(open_page: OpenPage) -> None:
    with open_page("?view=matrix") as page:
        expect(page.get_by_role("region", name="matrix")).to_contain_text("an empty cell is 0")


def test_cell_that_is_clicked_shows_the_pictures_behind_it(open_page: OpenPage) -> None:
    with open_page("?view=matrix") as page:
        cell = page.get_by_role("button", name="cat predicted as dog")
        count = int(cell.inner_text())
        cell.click()
        detail = page.get_by_role("complementary", name="cat predicted as dog")
        expect(detail).to_contain_text(f"{count} test images; the surest 24")
        expect(detail.get_by_role("img")).to_have_count(24)
        sure = [int(text.rstrip("%")) for text in detail.locator("small").all_inner_texts()]
        assert sure == sorted(sure, reverse=True)
        assert "true=cat&predicted=dog" in page.url


def test_matrix_is_normalised_and_sorted_as_asked(open_page: OpenPage) -> None:
    with open_page("?view=matrix") as page:
        rows = page.locator(".matrix tbody tr")
        expect(rows).to_have_count(10)
        page.get_by_label("Cells show").select_option("percent of the true class")
        expect(rows.first).to_contain_text(".")
        shown = [float(text or 0) for text in rows.first.locator("td").all_inner_texts()]
        assert sum(shown) == pytest.approx(100, abs=0.5)
        page.get_by_label("Classes").select_option("by similarity")
        expect(rows.first.locator("th")).not_to_have_text("airplane")
        order = rows.locator("th").all_inner_texts()
        assert abs(order.index("cat") - order.index("dog")) == 1
        assert abs(order.index("automobile") - order.index("truck")) == 1
        assert order == page.locator(".matrix thead th").all_inner_texts()


def test_everything_can_be_reached_with_the_keyboard_alone(open_page: OpenPage) -> None:
    with open_page() as page:
        choosers: list[FileChooser] = []
        page.on("filechooser", lambda chooser: choosers.append(chooser))  # from now on
        press = page.keyboard.press

        def tab_to(name: str, *, back: bool = False) -> None:
            for _ in range(250):
                press("Shift+Tab" if back else "Tab")
                focused = page.evaluate(
                    "(document.activeElement.ariaLabel || document.activeElement.title ||"
                    " document.activeElement.innerText ||"
                    " document.activeElement.querySelector('img')?.alt || '').trim()"
                )
                if focused.startswith(name):
                    return
            raise AssertionError(f"{name} was not reached")

        expect(page.get_by_role("article", name=CNN).locator(".overlay")).to_be_visible()
        tab_to("frog")
        press("Enter")
        expect(page.get_by_role("article", name=CNN).locator(".answer")).to_contain_text("frog")
        tab_to("dog", back=True)
        press("Enter")
        expect(page.get_by_role("article", name=CNN).locator(".answer")).to_contain_text("dog")
        tab_to("horse")  # among the classes, after the samples
        press("Space")
        expect(page.get_by_role("article", name=CNN).locator(".overlay")).to_have_attribute(
            "alt", "What speaks for horse in the picture"
        )
        tab_to("Take one", back=True)
        press("Enter")
        expect(page.get_by_role("dialog", name="Camera")).to_be_visible()
        press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        tab_to("Choose a picture", back=True)
        press("Enter")
        while not choosers:
            page.wait_for_timeout(50)
        tab_to("Filters", back=True)
        press("Enter")
        tab_to("filter 1")
        press("Enter")
        expect(page.get_by_role("complementary", name="Filter 1 of conv1")).to_be_visible()
        tab_to("Through the network", back=True)
        press("Enter")
        expect(panel(page, "Channel 1 of conv1")).to_be_visible()  # the filter's own maps
        tab_to("Close")
        press("Enter")
        expect(page.get_by_role("group", name="Layers")).to_be_focused()
        tab_to("channel 0")
        expect(panel(page, "Channel 0 of conv1")).to_contain_text("Row 16, column 16")
        press("Enter")  # which leads to the map's own numbers
        expect(page.get_by_role("application")).to_be_focused()
        press("ArrowDown")
        press("ArrowLeft")
        expect(panel(page, "Channel 0 of conv1")).to_contain_text("Row 17, column 15")
        tab_to("Close")
        press("Enter")
        expect(maps(page, "conv1").first).to_be_focused()
        assert page.title() == "Through the network · Convscope"
        tab_to("Confusion matrix", back=True)
        press("Enter")
        tab_to("airplane predicted as airplane")
        press("ArrowRight")
        press("ArrowRight")
        press("ArrowDown")
        press("Enter")
        expect(page.get_by_role("complementary")).to_contain_text("automobile taken for bird")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_every_view_fits_and_has_no_barrier_that_axe_finds(
    open_page: OpenPage, width: int, scheme: str
) -> None:
    for query in VIEWS.values():
        with open_page(query, width=width, scheme=scheme) as page:
            page.wait_for_load_state("networkidle")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            results = Axe().run(page)
            assert results.violations_count == 0, results.generate_report()


def test_addresses_that_make_no_sense_show_the_first_thing_there_is(open_page: OpenPage) -> None:
    with open_page("?view=filters&layer=none&from=abc&filter=-1") as page:
        expect(page.get_by_role("button", name="filter 0", exact=True)).to_be_visible()
    with open_page("?view=network&layer=conv1&channel=1e9&model=nobody/7") as page:
        expect(panel(page, "Channel 0 of conv1")).to_be_visible()
    with open_page("?view=somewhere&sample=unicorn&coverage=7&why=unicorn") as page:
        expect(page.get_by_role("article", name=CNN)).to_contain_text("dog")
        expect(page.get_by_label("Coverage of the prediction sets")).to_have_value("0.9")
    with open_page("?view=matrix&normalize=bogus&order=bogus") as page:
        expect(page.locator(".matrix tbody tr").first).to_contain_text("airplane")
        expect(page.get_by_label("Cells show")).to_have_value("")


def test_filter_of_one_layer_is_not_asked_of_another(open_page: OpenPage) -> None:
    with open_page("?view=filters&layer=conv2&filter=40") as page:
        expect(page.get_by_role("complementary", name="Filter 40 of conv2")).to_be_visible()
        page.get_by_role("link", name="Through the network").click()
        maps(page, "conv1").nth(3).click()
        page.get_by_role("link", name="Filters").click()
        expect(page.get_by_label("Layer")).to_have_value("conv1")
        expect(page.get_by_role("complementary")).to_have_count(0)
