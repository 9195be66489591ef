"""The bundled model's data: large enough, consistent, and the frozen questions apart from the trained ones."""

import random

from workers.demo_model import corpus, heldout, patterns, wording
from workers.demo_model.conversations import ConversationSampler


def test_there_are_five_hundred_question_forms_and_every_topic_has_an_answer():
    assert len({form for _, form in corpus.forms()}) >= 500
    assert all(topic.answer for topic in corpus.load().topics.values())


def every_form() -> list[tuple[str, str]]:
    """(Answer id, question), follow-ups and off-topic questions without slots included."""
    data = corpus.load()
    followed = [(name, form) for name, intent in data.followups.items() for form in expanded(intent.questions)]
    off = [("refusal", form) for form in expanded(q for q in data.offtopic if "{" not in q)]
    return [*corpus.forms(), *followed, *off]


def expanded(questions):
    return [form for question in questions for form in patterns.expand(question)]


def test_no_form_asks_for_two_answers():
    answers: dict[str, str] = {}
    for answer_id, form in every_form():
        assert answers.setdefault(form.lower(), answer_id) == answer_id, form


def test_held_out_questions_are_many_and_name_existing_answers():
    conversations = heldout.conversations()
    assert len(conversations) >= 200
    assert sum(len(turns) == 2 for turns in conversations) >= 40
    assert all(corpus.load().answer(turn.answer_id) for turns in conversations for turn in turns)


def test_no_written_form_comes_near_a_held_out_question():
    guard = heldout.Guard(questions={turn.question for turns in heldout.conversations() for turn in turns})
    near = [form for form in heldout.written_forms() if guard.is_too_near(form)]
    assert near == []


def test_nothing_that_training_draws_comes_near_a_frozen_question():
    guard = heldout.Guard()
    sampler = ConversationSampler(random.Random(99))
    for _ in range(400):
        sampler.start()
        for question, answer in (sampler.turn() for _ in range(8)):
            assert not guard.is_too_near(question), question
            assert answer


def test_off_topic_questions_are_many_and_not_trained():
    questions = heldout.offtopic()
    assert len(set(questions)) >= 100
    assert not set(questions) & set(heldout.written_forms())


def test_follow_ups_depend_on_the_turn_before():
    data = corpus.load()
    assert {data.answer("more:mars"), data.answer("more:venus"), data.answer("no_more")}.__len__() == 3
    assert "Paris" in data.answer("capital:France")
    assert "French" in data.answer("language:France")


def test_the_thesaurus_replaces_words_and_no_names():
    countries = [country.name for country in corpus.load().countries]
    names = {word.lower() for name in (*corpus.PLANETS, *countries) for word in name.split()}
    lines = [line.split(": ", 1) for line in corpus.lines("synonyms.txt")]
    assert len({word for word, _ in lines}) == len(lines) > 1000
    for word, others in lines:
        assert word not in names
        assert word not in others.split("|")
        assert all(others.split("|"))


def test_no_replaced_word_makes_a_question_of_another_answer():
    known = {word: others.split("|") for word, others in (line.split(": ", 1) for line in corpus.lines("synonyms.txt"))}
    answers = {form.lower(): answer_id for answer_id, form in every_form() if ":" not in answer_id}
    for form, answer_id in answers.items():
        words = form.split(" ")
        for place, word in enumerate(words):
            bare = word.strip(",.")
            for other in known.get(bare, ()):
                text = " ".join([*words[:place], word.replace(bare, other), *words[place + 1 :]])
                assert answers.get(text, answer_id) == answer_id, (form, text)


def test_a_replaced_word_stays_in_its_place():
    rng = random.Random(1)
    texts = {wording.roughen("Delete my account", rng) for _ in range(300)}
    assert any("remove my account" in text.lower() for text in texts)


def test_development_questions_name_existing_answers():
    every = heldout.development()
    assert len(every) >= 400
    assert all(corpus.load().answer(turn.answer_id) for turns in every for turn in turns)
