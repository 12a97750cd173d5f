"""Prompts of about so many tokens for servers whose tokenizer nobody has here: common words, each of them one token."""

from __future__ import annotations

import numpy as np

# With a space before it, each is one token of SmolLM2's vocabulary; such short words are in any large vocabulary.
_TEXT = """
able about above act add after again age ago air all also always among animal answer any area arm art ask away
baby back bad ball bank base bear beat bed before begin behind below best better between big bird black blue
board boat body book both box boy bread break bring brother brown build burn busy buy call came car card care
carry case cat catch cause center chair chance change check child choice church circle city class clean clear
climb clock close cloth cloud coast coat cold color come common cook cool copy corn corner cost could count
country course cover cross crowd cry cut dance dark day dead deal dear death decide deep design desk dinner
direct doctor dog door double down draw dream dress drink drive drop dry during each ear early earth east easy
eat edge effect egg eight either end energy engine enough enter equal even event ever every exact example expect
eye face fact fair fall family far farm fast father fear feed feel feet few field fight figure fill final find
fine finger finish fire first fish five flat floor flow flower fly follow food foot force forest forget form
forward found four free fresh friend front fruit full game garden gas gave general gentle girl give glad glass
gold good grand grass gray great green ground group grow guess guide hair half hand happen happy hard hat hear
heart heat heavy help high hill history hold hole home hope horse hospital hot hotel hour house human hundred
hunt hurry ice idea inch industry inside iron island job join jump just keep key kind king kitchen know lady
lake land language large last late laugh law lay lead leaf learn least leave left leg length lesson letter level
lie life lift light line list listen little live local long look lost loud love low lunch machine main make man
many map mark market master matter mean measure meat meet member men metal middle might mile milk million mind
minute miss modern moment money month moon morning most mother mountain mouth move much music must name nation
nature near neck need never new next night nine noise north nose note nothing notice number object ocean offer
office often oil old once one only open orange order other out over own page paint pair paper parent part party
pass past path pay people perhaps period person phrase piece place plain plan plane plant play please point poor
port pose position possible post pound power present press pretty problem produce program protect public pull
push put question quick quiet race radio rain raise ran reach read ready real reason record red region remember
rest result rich ride right ring rise river road rock roll room root rope rose round row rule run safe sail salt
same sand save say scale school science sea season seat second see seed seem sell send sense sentence serve set
seven several shape share sharp ship shoe shop short should shout show side sight sign silent silver similar
simple since sing sister sit six size skill skin sky sleep slow small smell smile snow soft soil soldier
solution some son song soon sound south space speak special speech speed spell spend spot spread spring square
stand star start state station stay steam steel step still stone stop store story straight strange stream street
strong student study subject such sudden sugar suit summer sun support sure surface surprise swim system table
tail take talk tall teach team tell ten term test than thank that thick thin thing think third though thought
thousand three through throw tie time tiny tire together tone tool top total touch toward town track trade train
travel tree triangle trip trouble truck true try turn twenty two type under unit until use usual valley value
very view village visit voice wait walk wall want war warm wash watch water wave way wear weather week weight
well west wheel when where which while white whole why wide wife wild will win wind window winter wire wish with
woman wonder wood word work world would write wrong yard year yellow young
"""

_WORDS = tuple(_TEXT.split())


def random_text(random: np.random.Generator, tokens: int) -> str:
    """Random words, as many as tokens are wanted, 1 or more.

    What a server counts may be a few more: its chat template's, and one where its vocabulary has no such word.
    """
    return " ".join(_WORDS[place] for place in random.integers(0, len(_WORDS), tokens))
