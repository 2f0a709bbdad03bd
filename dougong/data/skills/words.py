"""The fixed word lists from which problems are made."""

from __future__ import annotations

LETTERS = "abcdefghijklmnopqrstuvwxyz"

_WORDS = """
    ant arm art ash bag bat bed bee bell bird blue boat bone book bowl box boy bread brick bus cake calf camp cap car
    card cat chair clay cloud coal coat cold cook corn cow crab crow cup day deer desk dog door dove duck dust ear east
    egg elm eye face farm fern field fig fire fish flag flat foot fork fox frog fruit game gate gift glass goat gold
    goose grape grass green hall hand hat hawk heart hen hill hook horn horse house ice ink iron jam jar jet key king
    kite knee lake lamb lamp land leaf leg lemon light lily lion log map mask milk mill mint moon moss moth mouse nail
    neck nest net night north nose nut oak oil olive owl page pan park path peach pear pen piano pig pine plant plum
    pond pool queen rain ram red rice ring river road rock roof root rope rose sail salt sand seal seed sheep ship shoe
    silk silver sky snow soap sock south spoon star stone storm sugar sun swan table tail tea tent tiger toad tooth
    tower town train tree tulip tune vase wall water wave well west whale wheat wind wing wolf wood wool yard zebra zoo
    """
WORDS: tuple[str, ...] = tuple(_WORDS.split())

_NAMES = """
    Ada Alan Amy Anna Ben Carl Cleo Dan Dora Emma Eric Eva Fay Finn Gina Hans Hugo Ida Igor Ivy Jack Jane Joe Kim Lara
    Leo Lily Lin Luis Mark Mary Max Mei Mia Ming Nina Noah Nora Omar Otto Paul Rosa Ruth Sam Sara Tina Tom Vera Wang
    Will Yan Zoe
    """
NAMES: tuple[str, ...] = tuple(_NAMES.split())

_PLACES = """
    Athens Beijing Berlin Boston Cairo Chicago Delhi Dublin Geneva Hanoi Havana Lagos Lima Lisbon London Madrid Milan
    Moscow Munich Nairobi Oslo Paris Prague Rome Seoul Shanghai Sydney Tokyo Vienna Warsaw Xian Zurich
    """
PLACES: tuple[str, ...] = tuple(_PLACES.split())

_COLOURS = "red blue green yellow black white brown pink grey purple orange"
COLOURS: tuple[str, ...] = tuple(_COLOURS.split())

THINGS: tuple[str, ...] = ("hat", "car", "bike", "bag", "coat", "cup", "door", "boat", "kite", "lamp", "shirt", "phone")

COUNTED: tuple[str, ...] = ("apples", "books", "cats", "coins", "dogs", "eggs", "keys", "pens", "stamps", "stones")

_FOODS = "rice bread soup fish noodles cheese salad pizza eggs cake tofu pasta"
FOODS: tuple[str, ...] = tuple(_FOODS.split())
