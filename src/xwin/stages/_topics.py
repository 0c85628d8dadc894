"""What generated prompts are about: topics by the grammar of their questions, words to include and phrases to end with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Grammar = Literal["things", "matter", "place", "activity"]


def _listed(text: str) -> tuple[str, ...]:
    return tuple(" ".join(entry.split()) for entry in text.split(","))


THINGS = _listed("""
    penguins, owls, honeybees, dolphins, elephants, spiders, frogs, wolves, camels, parrots, butterflies, sharks, turtles, horses, kangaroos, bats,
    squirrels, crocodiles, flamingos, octopuses, ants, hedgehogs, otters, giraffes, snails, polar bears, whales, cats, dogs, goats, ducks, foxes,
    eagles, lizards, beavers, crabs, swans, moths, seals, zebras, volcanoes, glaciers, rainbows, earthquakes, waterfalls, islands, deserts, clouds,
    tornadoes, caves, coral reefs, forests, rivers, mountains, geysers, icebergs, tides, comets, stars, planets, black holes, eclipses, meteors,
    galaxies, satellites, telescopes, microscopes, magnets, batteries, lasers, robots, computers, bicycles, trains, airplanes, sailboats, submarines,
    bridges, lighthouses, windmills, elevators, tunnels, castles, skyscrapers, clocks, compasses, candles, mirrors, umbrellas, pencils, keys, pillows,
    backpacks, kites, puzzles, board games, violins, pianos, drums, guitars, trumpets, cameras, maps, stamps, coins, bananas, apples, tomatoes,
    potatoes, mushrooms, pumpkins, strawberries, lemons, onions, carrots, grapes, olives, pancakes, sandwiches, noodles, cookies, sunflowers, roses,
    cactuses, oak trees, pine trees, ferns, tulips, bones, muscles, dreams, fingerprints, vitamins, germs, fossils, dinosaurs, pyramids, museums,
    libraries, farmers, doctors, teachers, firefighters, astronauts, bakers, pilots, sailors, knights, pirates, newspapers, postcards, fairy tales,
    poems, birthdays, holidays, weekends, neighbors, sandcastles, snowflakes, tractors, traffic lights, vending machines, wheels, zippers
""")

MATTER = _listed("""
    gravity, sunlight, electricity, photosynthesis, evaporation, friction, magnetism, sound, oxygen, carbon dioxide, steam, lightning, thunder, fog,
    frost, snow, wind, sand, soil, gold, copper, iron, glass, paper, plastic, rubber, wood, cotton, silk, wool, leather, concrete, salt, sugar,
    honey, chocolate, coffee, tea, milk, cheese, butter, bread, rice, soup, pizza, popcorn, ice cream, garlic, cinnamon, olive oil, jazz,
    opera, poetry, architecture, astronomy, biology, chemistry, geometry, algebra, geology, medicine, history, democracy, money, trade, traffic,
    recycling, solar power, wind power, the internet, email, radio, television, the telephone, the printing press, the moon, the sun, the ocean,
    the atmosphere, the human heart, the human brain, blood, skin, sleep, laughter, friendship, kindness, patience, courage, curiosity, memory,
    language, music, basketball, tennis, soccer, baseball, chess, origami, the violin, the alphabet, autumn, winter, spring, summer
""")

PLACES = _listed("""
    Egypt, Japan, Brazil, Canada, Kenya, India, Iceland, Greece, Mexico, Norway, Italy, Peru, Australia, Morocco, Scotland, Vietnam, Switzerland,
    New Zealand, Portugal, Argentina, Paris, London, Rome, Tokyo, Venice, New York City, San Francisco, Istanbul, Sydney, Barcelona, Amsterdam,
    Cairo, Singapore, Rio de Janeiro, Berlin, Vienna, Prague, Athens, Chicago, Hawaii, Alaska, the Sahara, the Amazon rainforest, Antarctica,
    the Grand Canyon, the Great Barrier Reef, the Himalayas, Mount Everest, Niagara Falls, the Great Wall of China, the Eiffel Tower, the Colosseum,
    the Taj Mahal, Machu Picchu, the Dead Sea, the Nile, the Alps, Yellowstone, the Galapagos Islands, the Mediterranean Sea
""")

ACTIVITIES = _listed("""
    baking cakes, hiking, swimming, gardening, painting, photography, fishing, camping, knitting, cooking at home, running, dancing, singing,
    reading novels, writing letters, keeping a diary, learning a new language, playing the guitar, riding a horse, skiing, surfing, sailing,
    yoga, meditation, bird watching, stargazing, collecting shells, juggling, skateboarding, ice skating, rock climbing, rowing, archery,
    woodworking, pottery, sewing, drawing cartoons, solving crosswords, playing cards, volunteering, growing tomatoes, raising chickens, keeping
    bees, walking in the rain, flying a drone, traveling by train, learning magic tricks, building models, visiting art galleries, having a
    picnic, packing a suitcase, cleaning a kitchen, saving pocket money, studying for a test, giving a speech, training a puppy, taking a nap,
    waking up early, making friends, telling jokes, acting on stage, brewing beer, roasting vegetables, making jam, folding laundry, repairing
    shoes
""")

TOPICS: Mapping[Grammar, tuple[str, ...]] = {"things": THINGS, "matter": MATTER, "place": PLACES, "activity": ACTIVITIES}

WORDS = _listed("""
    morning, water, friend, garden, window, letter, color, market, bridge, shadow, winter, family, story, village, doctor, mirror, kitchen, journey,
    secret, engine, paper, summer, teacher, button, basket, corner, dinner, forest, guitar, hammer, island, jacket, kettle, lantern, machine, needle,
    orange, pocket, question, ribbon, silver, table, uncle, valley, wagon, yellow, airport, bottle, camera, danger, evening, feather, ground, harbor,
    insect, jungle, kingdom, ladder, meadow, nature, office, picture, rabbit, season, temple, umbrella, visitor, weather, answer, balloon, castle,
    desert, energy, farmer, gift, history, idea, joke, light, memory, night, ocean, pencil, queen, road, school, town, voice, world, artist, bread,
    child, dream, earth, fire, glass, house, iron, king, lake, moon, neighbor, owner, planet, rain, stone, train, value, wheel, animal, beach,
    circle, door, example, flower, gold, hand, ice, judge, key, leader, mountain, number, opinion, person, reason, science, tree, vacation, wind,
    apple, bell, cloud, distance, ear, field, game, hill, job, kite, leaf, map, name, opera, park, quiet, river, sand, time,
    union, view, wood, youth, zone, age, boat, city, day, edge, face, group, heart, inch, joy, knife, life, minute, nest, orbit, plant, rule, star,
    team, wall, year, advice, balance, chance, detail, effort, future, growth, health, impact, lesson, method, notice, object, pattern
""")

PHRASES = (
    "That is all.",
    "Thank you for asking!",
    "Have a nice day!",
    "Is there anything else?",
    "I hope this helps.",
    "See you soon!",
    "Now you know.",
    "What do you think?",
    "The end.",
    "Good luck!",
    "Ask me anything.",
    "Keep on learning!",
    "Stay curious!",
    "Who could ask for more?",
    "That is my answer.",
    "Take care!",
    "Enjoy your day!",
    "It is that simple.",
    "Let me know.",
    "And that is a fact.",
    "This is only the start.",
    "Do you agree?",
    "Try it yourself!",
    "Life is good.",
    "Nothing more to say.",
    "I rest my case.",
    "You can trust me.",
    "Come back any time.",
    "Always remember this.",
    "Happy reading!",
    "Every little bit counts.",
    "Over and out.",
    "Does that make sense?",
    "Best wishes!",
    "It is worth knowing.",
    "Tell your friends!",
    "Who would have guessed?",
    "Time will tell.",
    "So it goes.",
    "Hope to see you again.",
    "There is always more.",
    "Never stop exploring!",
    "Simple as that.",
    "You are welcome!",
    "Any other questions?",
    "Wish you well.",
    "This concludes my answer.",
    "Sleep well tonight.",
    "Pass it on!",
    "The rest is history.",
    "Be kind to others.",
    "Seeing is believing.",
    "Practice makes perfect.",
    "Better safe than sorry.",
    "Knowledge is power.",
    "Make it count!",
    "Cheers to that!",
    "Look it up!",
    "My work is done.",
    "Until next time!",
)
"""Each ends with a mark of its own, holds no comma, and ends in no other, so one cannot be met by accident while another is asked for."""
