"""The bundled model's data: large enough, consistent, and the frozen questions apart from the trained ones."""

import random

from workers.demo_model import corpus, heldout
from workers.demo_model.conversations import ConversationSampler


def test_there_are_five_hundred_question_forms_and_every_topic_has_an_answer():
    assert len({form for _, form in corpus.forms()}) >= 500
    assert all(topic.answer for topic in corpus.load().topics.values())


def test_no_form_asks_for_two_answers():
    answers: dict[str, str] = {}
    for answer_id, form in corpus.forms():
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
