"""The closed sets behind a shop's filter: canonical values and the words people type for each.

Brands are invented. Every value is one word without spaces, so that a tokenizer can hold it in one
token; none of the words typed for one value of a facet is typed for another of the same facet.
"""

from __future__ import annotations

KEYS = (
    "category", "audience", "colour", "size", "material", "brand", "condition", "price_min",
    "price_max", "delivery", "sort", "not",
)  # fmt: skip
"""The keys of a filter, in the order in which its JSON has them."""

NEGATABLE = ("colour", "material", "brand", "condition")
"""Facets that ``not`` may name, in the order in which its JSON has them."""

PAIRED = ("category", "colour", "material", "brand", "price_min", "price_max")
"""Facets any two of which form the pairs of values that are held out of training."""

GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "footwear": {
        "running_shoes": ("running shoes", "runners", "jogging shoes"),
        "trainers": ("trainers", "sneakers"),
        "boots": ("boots",),
        "hiking_boots": ("hiking boots", "walking boots", "trekking boots"),
        "sandals": ("sandals",),
        "slippers": ("slippers", "house shoes"),
        "loafers": ("loafers", "moccasins"),
        "heels": ("heels", "high heels"),
    },
    "clothing": {
        "jacket": ("jacket", "jackets"),
        "coat": ("coat", "coats", "overcoat"),
        "raincoat": ("raincoat", "rain jacket"),
        "jeans": ("jeans",),
        "trousers": ("trousers", "pants"),
        "shorts": ("shorts",),
        "skirt": ("skirt", "skirts"),
        "dress": ("dress", "dresses", "gown"),
        "t_shirt": ("t shirt", "tee", "tee shirt"),
        "shirt": ("shirt", "shirts", "button down"),
        "jumper": ("jumper", "sweater", "pullover"),
        "hoodie": ("hoodie", "hooded top"),
        "socks": ("socks",),
        "pyjamas": ("pyjamas", "nightwear"),
        "swimwear": ("swimwear", "swimsuit", "bathing suit"),
    },
    "bags": {
        "backpack": ("backpack", "rucksack"),
        "handbag": ("handbag", "purse"),
        "suitcase": ("suitcase", "luggage", "trolley case"),
        "wallet": ("wallet", "billfold"),
        "belt": ("belt", "belts"),
    },
    "home": {
        "desk": ("desk", "writing table"),
        "chair": ("chair", "chairs"),
        "sofa": ("sofa", "couch", "settee"),
        "bookshelf": ("bookshelf", "bookcase"),
        "lamp": ("lamp", "lamps"),
        "rug": ("rug", "carpet"),
        "mirror": ("mirror", "looking glass"),
        "bed_frame": ("bed frame", "bedstead"),
        "wardrobe": ("wardrobe", "closet"),
        "kettle": ("kettle", "water boiler"),
        "frying_pan": ("frying pan", "skillet"),
        "mug": ("mug", "mugs", "coffee cup"),
        "knife_set": ("knife set", "kitchen knives"),
        "vase": ("vase", "flower pot"),
    },
    "tech": {
        "headphones": ("headphones", "headset"),
        "earbuds": ("earbuds", "in ear phones"),
        "keyboard": ("keyboard", "keyboards"),
        "phone_case": ("phone case", "phone cover"),
        "tablet": ("tablet", "tablets"),
        "speaker": ("speaker", "loudspeaker"),
        "camera": ("camera", "cameras"),
        "monitor": ("monitor", "computer screen"),
    },
}
"""Canonical categories by group, each with the words typed for it."""

MATERIALS: dict[str, dict[str, tuple[str, ...]]] = {
    "footwear": {
        "leather": ("leather",),
        "suede": ("suede",),
        "canvas": ("canvas",),
        "rubber": ("rubber",),
    },
    "clothing": {
        "cotton": ("cotton",),
        "wool": ("wool",),
        "linen": ("linen", "flax"),
        "silk": ("silk",),
        "denim": ("denim",),
        "fleece": ("fleece",),
    },
    "bags": {
        "leather": ("leather",),
        "canvas": ("canvas",),
        "nylon": ("nylon",),
    },
    "home": {
        "wood": ("wood", "timber"),
        "bamboo": ("bamboo",),
        "glass": ("glass",),
        "steel": ("steel", "stainless steel"),
        "ceramic": ("ceramic", "porcelain"),
    },
    "tech": {
        "plastic": ("plastic",),
        "aluminium": ("aluminium", "aluminum"),
        "steel": ("steel", "stainless steel"),
        "carbon": ("carbon", "carbon fibre"),
    },
}
"""Materials by the group of the category they are asked with."""

LETTER_SIZES: dict[str, tuple[str, ...]] = {
    "xs": ("xs", "extra small"),
    "s": ("s", "small"),
    "m": ("m", "medium"),
    "l": ("l", "large"),
    "xl": ("xl", "extra large"),
    "xxl": ("xxl", "double xl"),
}
SHOE_SIZES: dict[str, tuple[str, ...]] = {
    f"{size}-{size + 1}": (str(size), str(size + 1)) for size in range(34, 48, 2)
}
"""Shoe sizes fall in bands of two: 42 and 43 are both ``42-43``."""

CAPS = (10, 15, 20, 25, 30, 40, 50, 60, 75, 80, 100, 120, 150, 200, 250, 300, 400, 500)
FLOORS = (10, 20, 30, 50, 75, 100, 150, 200, 300, 400)
RANGES = (
    (10, 25), (20, 40), (30, 60), (40, 80), (50, 100), (75, 150), (100, 200), (150, 300),
    (200, 400), (250, 500),
)  # fmt: skip
"""Bounds of price bands in euros: at most, at least, between. Other amounts do not occur."""

VALUES: dict[str, dict[str, tuple[str, ...]]] = {
    "category": {name: words for group in GROUPS.values() for name, words in group.items()},
    "audience": {
        "women": ("women", "ladies"),
        "men": ("men", "gentlemen"),
        "girls": ("girls",),
        "boys": ("boys",),
        "kids": ("kids", "children"),
        "babies": ("babies", "infants", "toddlers"),
        "unisex": ("unisex", "all genders"),
    },
    "colour": {
        "black": ("black",),
        "white": ("white",),
        "grey": ("grey", "gray"),
        "red": ("red", "scarlet", "crimson"),
        "blue": ("blue", "sky blue"),
        "navy": ("navy", "dark blue"),
        "green": ("green", "emerald"),
        "olive": ("olive", "khaki"),
        "yellow": ("yellow", "lemon"),
        "orange": ("orange",),
        "pink": ("pink", "rose"),
        "purple": ("purple", "violet"),
        "brown": ("brown", "chocolate"),
        "beige": ("beige", "cream"),
        "turquoise": ("turquoise", "teal"),
        "burgundy": ("burgundy", "wine red"),
    },
    "size": {**LETTER_SIZES, **SHOE_SIZES},
    "material": {name: words for group in MATERIALS.values() for name, words in group.items()},
    "brand": {
        name: (name,)
        for name in (
            "norvel", "azurra", "voxley", "tamrin", "kestrin", "lumero", "brontak", "pellora",
            "solvane", "marrowick", "zephra", "ostrin", "dunmere", "cindrel", "hulvik", "quarnel",
        )
    },
    "condition": {
        "new": ("new", "brand new", "unused"),
        "used": ("used", "second hand", "pre owned"),
        "refurbished": ("refurbished", "renewed", "reconditioned"),
    },
    "price_min": {str(n): (str(n),) for n in sorted({*FLOORS, *(low for low, _ in RANGES)})},
    "price_max": {str(n): (str(n),) for n in sorted({*CAPS, *(high for _, high in RANGES)})},
    "delivery": {
        "next_day": ("next day", "overnight", "24 hour"),
        "two_day": ("two day", "48 hour"),
        "weekend": ("weekend", "saturday"),
        "free": ("free", "no cost"),
        "express": ("express", "fast"),
        "standard": ("standard", "regular"),
    },
    "sort": {
        "price_up": ("cheapest", "lowest price", "least expensive"),
        "price_down": ("most expensive", "highest price", "priciest"),
        "newest": ("newest", "latest", "most recent"),
        "rating": ("best rated", "top rated", "highest rated"),
        "sales": ("best selling", "most popular"),
        "discount": ("biggest discount", "largest reduction"),
    },
}  # fmt: skip
"""Every facet's canonical values with the words typed for each."""

NICKNAMES = {"azurra": "the blue brand", "voxley": "the fox brand", "zephra": "the wind brand"}
"""What people call a brand whose name they do not recall; only to say that they do not want it."""

ANYTHING = ("anything", "something", "items", "things", "stuff")
"""What stands in the place of a category where a search names none."""
