"""Trains the small tokenizer on toyworld's captions and on common English words.

    python tools/train_tokenizer.py OUT [--vocab_size 768] [--captions 10000] [--seed 0]

Writes spiece.model, tokenizer.json and tokenizer_config.json to the folder OUT; the same arguments give the same bytes.
The captions make the words of toyworld whole pieces. The common words teach it how English is spelt, so that a word
that no caption has falls into a few pieces and not into letters.
"""

import argparse
import re

import numpy as np

from dit_video.data.toyworld import captions as grammar
from dit_video.data.toyworld.captions import caption
from dit_video.data.toyworld.splits import sample_scene
from dit_video.models.tokenizer import UNKNOWN, Tokenizer, train

COMMON = """
a about above across act action add after afternoon again against age ago air airplane all alone along already also
always among an and angry animal another answer any apple are arm around arrive art as ask astronaut at away baby back
bad ball balloon band bank bar base basket bath battle beach bear beautiful because become bed bee been before begin
behind being believe bell below bench best better between beyond bicycle big bird birthday black blow blue boat body
book born both bottle bottom box boy branch bread break breath bridge bright bring brother brown brush build building
burn bus busy but butterfly buy by cake call camel camera can candle capital car card care carry castle cat catch cave
center centre century chair change child children choose church cinematic city clean clear clearly climb clock close
cloud clouds cloudy coast coat coffee cold color colour colorful come common computer cook cool corner could country
couple cow cross crowd cry cup curtain cut dance dancer dancing dark dawn day dead deep deer desert desk detail detailed
different dinner dirty do dog dolphin door dough down dragon draw drawing dream dress drink drive drone drop dry duck
during dust each ear early earth east eat edge egg eight either elephant empty end energy engine enjoy enough evening
ever every eye eyes face fall family far farm fast father feather feel feet fence few field fight film find fine finger
fire first fish five flag flame flat floor flow flower flowers fly flying fog follow food foot for forest forget fork
forward four fox free fresh friend friendly frog from front fruit full funny game garden gentle get giant girl give
glass glow glowing go goat gold golden good grass gray great green grey ground group grow guitar hair half hall hand
hands hang happen happy hard hat have he head hear heart heavy help her here high hill him his hold hole holiday home
horse hot hour house how huge human hundred hungry hurry ice idea if image important in inside into iron island it its
jacket join jump jumping jungle just keep key kick kid kind king kitchen kite knife know lake lamp land landscape large
last late laugh lay lead leaf learn leave leaves left leg lemon less let letter library life light lightning like line
lion listen little live long look lose lost lot loud love low lunch machine magic make man many map market marble me
meadow mean measure meet men metal middle might milk mind mirror miss moment money monkey month moon more morning most
mother motion mountain mountains mouse mouth move movement movie moving much mud music must my name narrow nature near
neck need neon nest never new next nice night nine no noise none north nose not nothing now number ocean of off office
often old on once one only open or orange other our out outside over own owl page paint painting paper parent park part
party pass past path people perfect person phone photo photograph piano picture piece pink place plain planet plant
plate play playing please pocket point poor pond portrait possible pot power present press pretty pull purple push put
queen question quick quickly quiet rabbit race rain rainbow rainy reach read reading ready real realistic really red
rest rice rich ride riding right ring rise river road robot rock rocket roof room rope rose round row run running sad
sail same sand save say scene school science sea season seat second see seed sell send sentence serious seven several
shadow shake shape sharp she sheep shine shiny ship shirt shoe shop shore short should shoulder shout show side sign
silver simple since sing singing single sister sit sitting six size skin sky sleep sleeping slow slowly small smell
smile smiling smoke smooth snake snow snowy so soft soldier some song soon sound soup south space spaceship speak
special speed spider spoon sport spring square stage stand standing star stars start station stay steam steel step still
stone stop storm story straight strange street strong student study style sudden sugar suit summer sun sunny sunset
sunrise sure surface sweet swim swimming table tail take talk talking tall taste tea teach team tell ten than thank that
the their them then there these they thick thin thing think third this those thousand three through throw tiger time
tiny tired to today together tomorrow too tooth top touch toward tower town toy track train travel tree trees triangle
trouble truck true try turn turtle twelve twenty two umbrella under understand until up upon us use usual valley very
video view village violin visit voice wait walk walking wall want warm wash watch watching water waterfall wave waves
way we wear weather week weight well west wet whale what wheel when where which while white who whole why wide wild will
wind window windy wine wing winter wish with wolf woman women wonder wood wooden word work world worry worse would write
wrong yard year yellow yes yesterday yet you young your zebra zero zoo
"""


def corpus(captions: int, seed: int) -> list[str]:
    """Captions of the training split, the words of the grammar (rare synonyms are to be whole too), common words."""
    rng = np.random.default_rng(seed)
    sentences = [caption(sample_scene(rng), rng) for _ in range(captions)]
    return sentences + sorted(grammar_words()) * (captions // 50) + COMMON.split() * 4


def grammar_words() -> set[str]:
    """Every word that a caption can hold."""
    templates = (template for split in (*grammar.ONE.values(), *grammar.TWO.values()) for template in split)
    text = re.sub(r"\{\w+\}", " ", " ".join(templates))
    tables = (value for name, value in vars(grammar).items() if name.endswith(("_WORDS", "VERBS")))
    text += " " + " ".join(map(str, tables))
    return {word for part in grammar.vocabulary(text) for word in part.split("-")} - {""}


def report(tokenizer: Tokenizer, sentences: list[str]) -> str:
    _, length, _ = tokenizer.encode(sentences)
    split = {w: "+".join(p.strip("▁") for p in tokenizer.pieces(w)) for w in grammar_words()}
    split = sorted(p for w, p in split.items() if p != w)
    unseen = COMMON.split()
    letters = np.mean([len(tokenizer.pieces(word)) for word in unseen])
    assert UNKNOWN not in tokenizer.encode([" ".join(unseen)]).ids
    return (
        f"{len(tokenizer)} pieces; a caption has {length.mean():.1f} of them, {length.max()} at most; "
        f"a common word {letters:.2f}. Words of captions in more than one piece ({len(split)}): {', '.join(split)}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--vocab_size", type=int, default=768)
    parser.add_argument("--captions", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    texts = corpus(args.captions, args.seed)
    print(report(train(texts, args.vocab_size, args.out), texts[: min(2000, args.captions)]))
