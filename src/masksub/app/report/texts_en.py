"""How values, names and the sentences of the verdict read in English. ``texts_ja`` has the same keys."""

__all__ = ["MESSAGES"]

MESSAGES: dict[str, str] = {
    # How values are written.
    "absent": "\u2013",
    "list.separator": ", ",
    "space": " ",
    "list.semicolon": "; ",
    "with": "{value} ({more})",
    "range.dash": "\u2013",
    "unit.points": "{n}\u00a0points",
    "unit.percent": "{n}\u00a0%",
    "unit.times": "{n}\u00a0\u00d7",
    "time.seconds": "{s} s",
    "time.minutes": "{m} min {s} s",
    "time.hours": "{h} h {m} min",
    "date": "{day} {month} {year}",
    "month.1": "January", "month.2": "February", "month.3": "March", "month.4": "April", "month.5": "May",
    "month.6": "June", "month.7": "July", "month.8": "August", "month.9": "September", "month.10": "October",
    "month.11": "November", "month.12": "December",
    "count.seed.one": "{n} seed", "count.seed.other": "{n} seeds",
    "count.run.one": "{n} run", "count.run.other": "{n} runs",
    "count.epoch.one": "{n:number} epoch", "count.epoch.other": "{n:number} epochs",
    "count.setting.one": "{n} setting", "count.setting.other": "{n} settings",
    "count.class.one": "{n} class", "count.class.other": "{n} classes",
    "interval": "{low:decimal} to {high:decimal}",
    "interval.signed": "{low:signed} to {high:signed}",
    "method.paired t": "paired t-test",
    "method.BCa bootstrap, exact sign-flip test": "BCa bootstrap, p-value by an exact sign-flip test",
    "method.BCa bootstrap, random sign-flip test": "BCa bootstrap, p-value by a sign-flip test with random draws",
    "method.percentile bootstrap, exact sign-flip test": "percentile bootstrap, p-value by an exact sign-flip test",
    "method.percentile bootstrap, random sign-flip test": "percentile bootstrap, p-value by a sign-flip test with "
    "random "
    "draws",
    "method.all differences are equal: no interval, exact sign-flip test": "no interval where all differences are "
    "equal, "
    "p-value by an exact sign-flip test",
    "method.one pair, no interval": "no interval for one pair",
    "method.no pair": "nothing for no pair",
    # What is said within a sentence.
    "word.equal-epochs": "plain training at equal epochs",
    "word.other-epochs": "plain training of another number of epochs",
    "word.compute-untried": "equal compute was not tried",
    "word.compute-open": "at equal compute there is nothing to compare with yet",
    # Names.
    "arm.plain": "Plain",
    "arm.plain-equal": "Plain, equal compute",
    "arm.masksub": "MaskSub",
    "arm.direct-mask": "Masking in plain training",
    "arm.true-label-sub": "Sub branch with true labels",
    "arm.self-distill": "Self-distillation, no mask",
    "arm.dropsub": "DropSub",
    "arm.pathsub": "PathSub",
    "arm.cosub": "CoSub",
    "status.complete": "complete",
    "status.failed": "diverged",
    "status.reason": "{status}: {reason}",
    "status.incomplete": "incomplete",
    # The verdict: headline.
    "headline.compute.better": "At equal compute, {who:arm} is better than plain training, by {mean:size} of top-1.",
    "headline.compute.worse": "At equal compute, {who:arm} is worse than plain training, by {mean:size} of top-1.",
    "headline.compute.none": "At equal compute, no difference seen between {who:arm} and plain training.",
    "headline.compute.unknown": "Too few seeds to say whether {who:arm} helps at equal compute.",
    "headline.epochs.better": "At equal epochs, {who:arm} is better than plain training, by {mean:size} of top-1; "
    "{compute:word}.",
    "headline.epochs.worse": "At equal epochs, {who:arm} is worse than plain training, by {mean:size} of top-1.",
    "headline.epochs.none": "At equal epochs, no difference seen between {who:arm} and plain training.",
    "headline.epochs.unknown": "Too few seeds to say whether {who:arm} helps.",
    "headline.compute.no-interval": "At equal compute, all seeds of {who:arm} differ from plain training by the same "
    "{mean:points}: no interval can be given, so no difference is claimed.",
    "headline.epochs.no-interval": "At equal epochs, all seeds of {who:arm} differ from plain training by the same "
    "{mean:points}: no interval can be given, so no difference is claimed.",
    "headline.no-reference": "{who:arm} was trained, but there is no plain run to compare it with.",
    "headline.no-pairs": "{who:arm} was trained, but no seed was completed both by it and by plain training, so there "
    "is "
    "nothing to compare it with yet.",
    "headline.no-sub": "There is no run of MaskSub or of a method like it, so nothing can be said about it.",
    "headline.no-run": "No run of {who:arm} is complete, so nothing can be said about it yet.",
    "headline.epochs.differ": "{who:arm} and plain training did not have equal epochs, so nothing is said about a "
    "gain.",
    "headline.unequal.better": "{who:arm} is better than longer plain training of {ratio:times} its operations, by "
    "{mean:size} of top-1.",
    "headline.unequal.worse": "{who:arm} is worse than longer plain training of {ratio:times} its operations, by "
    "{mean:size} of top-1.",
    "headline.unequal.none": "No difference seen between {who:arm} and longer plain training of {ratio:times} its "
    "operations.",
    "headline.unequal.unknown": "Too few seeds to say whether {who:arm} helps against longer plain training.",
    "headline.unequal.no-interval": "All seeds of {who:arm} differ from longer plain training of {ratio:times} its "
    "operations by the same {mean:points}: no interval can be given, so no difference is claimed.",
    "headline.failed": "{who:arm}: {n} of {all:count.run} diverged; no mean includes what diverged.",
    "gain.confounded": "The arms also differ in {names:names}: the difference may come from that.",
    # Gain at equal epochs.
    "epochs.better": "{who:arm} is better than plain training: {mean:points} of top-1 ({level:share} interval "
    "{low:signed} to {high:signed}, {seeds:count.seed}).",
    "epochs.worse": "{who:arm} is worse than plain training: {mean:points} of top-1 ({level:share} interval "
    "{low:signed} to {high:signed}, {seeds:count.seed}).",
    "epochs.none": "No difference seen: the mean is {mean:points} of top-1, and the {level:share} interval, "
    "{low:signed} "
    "to {high:signed}, contains 0 ({seeds:count.seed}).",
    "epochs.unknown": "{who:arm} ended {mean:points} from plain training, over {seeds:count.seed}. No claim about "
    "noise "
    "can be made: three seeds are the least.",
    "epochs.no-interval": "{who:arm} ended {mean:points} from plain training, the same with each of "
    "{seeds:count.seed}; "
    "no interval can be given, so no claim about noise can be made.",
    "epochs.same": "No difference seen: {who:arm} and plain training ended the same with each of {seeds:count.seed}.",
    "epochs.disputed": "No difference is claimed: the mean is {mean:points} of top-1, and the {level:share} interval, "
    "{low:signed} to {high:signed}, excludes 0, but the p-value ({p:p}) does not bear it out ({seeds:count.seed}).",
    "epochs.none-complete": "Not known: no run of plain training is complete.",
    "epochs.no-arm": "Not known: there is no run of plain training.",
    "epochs.no-pairs": "Not known: no seed was completed by both {who:arm} and plain training.",
    "epochs.differ": "The epochs are not equal: {ours:number} for {who:arm}, {theirs:number} for plain training.",
    # Gain at equal compute.
    "compute.better": "{who:arm} is better than plain training that was made longer until it cost as much: "
    "{mean:points} "
    "of top-1 ({level:share} interval {low:signed} to {high:signed}, {seeds:count.seed}).",
    "compute.worse": "{who:arm} is worse than plain training that was made longer until it cost as much: {mean:points} "
    "of top-1 ({level:share} interval {low:signed} to {high:signed}, {seeds:count.seed}).",
    "compute.none": "No difference seen: the mean is {mean:points} of top-1, and the {level:share} interval, "
    "{low:signed} to {high:signed}, contains 0 ({seeds:count.seed}).",
    "compute.unknown": "{who:arm} ended {mean:points} from plain training of the same cost, over "
    "{seeds:count.seed}. No "
    "claim about noise can be made: three seeds are the least.",
    "compute.no-interval": "{who:arm} ended {mean:points} from plain training of the same cost, the same "
    "with each of {seeds:count.seed}; no interval can be given, so no claim about noise can be made.",
    "compute.same": "No difference seen: {who:arm} and plain training of the same cost ended the same with each of "
    "{seeds:count.seed}.",
    "compute.disputed": "No difference is claimed: the mean is {mean:points} of top-1, and the {level:share} interval, "
    "{low:signed} to {high:signed}, excludes 0, but the p-value ({p:p}) does not bear it out ({seeds:count.seed}).",
    "compute.none-complete": "Not known: no run of plain training at equal compute is complete, so a gain may come "
    "from "
    "the longer computation alone.",
    "compute.no-arm": "Not known: plain training was not tried at equal compute, so a gain may come from the longer "
    "computation alone.",
    "compute.no-pairs": "Not known: no seed was completed by both {who:arm} and plain training at equal compute.",
    "unequal.better": "The compute is not equal. {who:arm} is better than longer plain training, which had "
    "{ratio:times} its operations: {mean:points} of top-1 ({level:share} interval {low:signed} to {high:signed}, "
    "{seeds:count.seed}).",
    "unequal.worse": "The compute is not equal. {who:arm} is worse than longer plain training, which had {ratio:times} "
    "its operations: {mean:points} of top-1 ({level:share} interval {low:signed} to {high:signed}, "
    "{seeds:count.seed}).",
    "unequal.none": "The compute is not equal: longer plain training had {ratio:times} the operations of {who:arm}. No "
    "difference seen: {mean:points} of top-1, and the {level:share} interval, {low:signed} to {high:signed}, "
    "contains 0 "
    "({seeds:count.seed}).",
    "unequal.unknown": "{who:arm} ended {mean:points} from longer plain training, which had {ratio:times} its "
    "operations, over {seeds:count.seed}. No claim about noise can be made: three seeds are the least.",
    "unequal.no-interval": "{who:arm} ended {mean:points} from longer plain training, which had {ratio:times} its "
    "operations, the same with each of {seeds:count.seed}; no interval can be given, so no claim about noise can be "
    "made.",
    "unequal.same": "The compute is not equal: longer plain training had {ratio:times} the operations of {who:arm}. No "
    "difference seen: both ended the same with each of {seeds:count.seed}.",
    "unequal.disputed": "The compute is not equal: longer plain training had {ratio:times} the operations of "
    "{who:arm}. "
    "No difference is claimed: the mean is {mean:points} of top-1, and the {level:share} interval, {low:signed} to "
    "{high:signed}, excludes 0, but the p-value ({p:p}) does not bear it out ({seeds:count.seed}).",
    # Cost.
    "cost.alone": "{flops:flops} and {seconds:duration} a run; there is no complete plain run to compare this with.",
    "cost.flops": "{ratio:times} the operations of {at:word} ({ours:flops} against "
    "{theirs:flops}).",
    "cost.seconds": "{ratio:times} its training time ({ours:duration} against {theirs:duration} a run).",
    "cost.memory": "{ratio:times} its peak memory ({ours:bytes} against {theirs:bytes}).",
    "cost.energy": "{ratio:times} its energy ({ours:joules} against {theirs:joules}; measured: {of}).",
    "cost.reach": "Its mean curve first reaches plain training\u2019s final accuracy at {share:share} of plain "
    "training\u2019s "
    "operations.",
    "cost.reach-own": "Its mean curve first reaches plain training\u2019s final accuracy at {share:share} of plain "
    "training\u2019s operations; plain training\u2019s own curve first does at {own:share}.",
    "cost.never": "Its mean curve does not reach plain training\u2019s final accuracy.",
    # Certainty.
    "certainty.paired": "Against {reference:arm}: {seeds:count.seed} ({seed_list:numbers}), paired; {level:share} "
    "interval by {method:method}, {p:p}.",
    "certainty.equal": "Against {reference:arm}: {seeds:count.seed} ({seed_list:numbers}), paired; all differences are "
    "equal, so no interval can be given; {p:p} by an exact sign-flip test.",
    "certainty.few": "Against {reference:arm}: {seeds:count.seed} ({seed_list:numbers}). No claim about noise can be "
    "made with fewer than three.",
    "certainty.disputed": "The interval against {reference:arm} excludes 0, but the p-value does not bear it out; with "
    "so few seeds such intervals are too narrow, so no difference is claimed.",
    "certainty.nothing": "No seed of {who:arm} is paired with one of plain training, so there is no interval.",
    "certainty.spread": "From seed to seed, {who:arm} varies with a standard deviation of {spread:plain_points} "
    "({seeds:count.seed}).",
    "certainty.failed": "{who:arm}: {n} of {all:count.run} diverged (seed {seeds:numbers}). Counted here, in no mean.",
    "certainty.incomplete": "{who:arm}: {n:count.run} incomplete (seed {seeds:numbers}). In no mean.",
    "certainty.sweep-failed": "Sweep: {n:count.run} diverged. Counted here, in no mean.",
    "certainty.skipped": "Images that could not be read were left out of {n:count.run} (in the table of runs: "
    "{runs:runs}): of each, {training} for training and {validation} for validation.",
    "certainty.survivors": "The mean of {who:arm} leaves out what diverged: judge the gain together with the failures.",
    # Recommended setting.
    "recommended.longer": "Where compute is what counts, train the plain recipe for longer; {who:arm} pays only where "
    "the number of epochs is what is fixed.",
    "recommended.stay": "On this evidence, stay with the plain recipe.",
    "recommended.nothing-yet": "On this evidence, nothing speaks for changing the plain recipe yet.",
    "recommended.unswept": "Not swept. These runs used {settings:settings}. Try `masksub sweep RECIPE --ratio "
    "0.25,0.5,0.75 --weight 0.25,0.5,0.75`.",
    "recommended.unswept-unknown": "Not swept. Try `masksub sweep RECIPE --ratio 0.25,0.5,0.75 --weight "
    "0.25,0.5,0.75`.",
    "recommended.unswept-other": "Not swept. These runs used {settings:settings}.",
    "recommended.only-failed": "Nothing yet: {n:count.run} diverged and none is complete. Find out why before you try "
    "other settings.",
    "recommended.none-complete": "A sweep of {settings:count.setting} was begun; none of them is complete.",
    "recommended.sweep": "Of {tried:count.setting}: {settings:settings}. Top-1 {mean:percent} ({level:share} interval "
    "{low:decimal} to {high:decimal}, {seeds:count.seed}).",
    "recommended.sweep-few": "Of {tried:count.setting}: {settings:settings}. Top-1 {mean:percent}, over "
    "{seeds:count.seed}: too few to tell it from its neighbours.",
    "recommended.sweep-equal": "Of {tried:count.setting}: {settings:settings}. Top-1 {mean:percent}, the same with "
    "each "
    "of {seeds:count.seed}.",
    "recommended.own": "It is the setting of {who:arm} above, which is compared with plain training there.",
    "recommended.versus.better": "This setting is better than {at:word}: {mean:points} ({level:share} interval "
    "{low:signed} to {high:signed}, {seeds:count.seed}).",
    "recommended.versus.worse": "This setting is worse than {at:word}: {mean:points} ({level:share} interval "
    "{low:signed} to {high:signed}, {seeds:count.seed}).",
    "recommended.versus.none": "No difference seen between this setting and {at:word} ({mean:points}, {level:share} "
    "interval {low:signed} to {high:signed}, {seeds:count.seed}).",
    "recommended.versus.same": "No difference seen between this setting and {at:word}: both ended the same with each "
    "of "
    "{seeds:count.seed}.",
    "recommended.versus.disputed": "No difference is claimed between this setting and {at:word}: {mean:points}; the "
    "{level:share} interval, {low:signed} to {high:signed}, excludes 0, but the p-value ({p:p}) does not bear it out "
    "({seeds:count.seed}).",
    "recommended.versus.no-interval": "This setting ended {mean:points} from {at:word}, the same with each of "
    "{seeds:count.seed}; no interval can be given, so no claim about noise can be made.",
    "recommended.versus.unknown": "This setting ended {mean:points} from {at:word}, over {seeds:count.seed}; no claim "
    "about noise can be made with so few.",
    "recommended.confounded": "It also differs from plain training in {names:names}: the difference may come from "
    "that.",
    "recommended.not-best": "The highest mean was {mean:percent}, at {settings:settings}; it is not told apart from "
    "the "
    "recommended setting, which is cheaper or nearer to the usual one.",
    "recommended.best-fewer": "The highest mean was {mean:percent}, at {settings:settings}, but over fewer complete "
    "seeds.",
    "recommended.sensitivity": "One step away along `{name}`, at most {loss:plain_points} of mean top-1 are lost.",
    # What to try next.
    "next.resume": "Complete what is incomplete: the same command goes on with what is missing.",
    "next.run-masksub": "Train with MaskSub: `masksub compare RECIPE`.",
    "next.failed": "Find out why runs of {arms:arms} diverged: a lower `optim.lr`, or `optim.clip_norm`.",
    "next.failed-fp16": "Find out why runs of {arms:arms} diverged: a lower `optim.lr`, `optim.clip_norm`, or "
    "`train.precision=bf16`.",
    "next.plain": "Add plain training, without which no gain can be told: `masksub compare RECIPE`.",
    "next.plain-equal": "Add plain training at equal compute: `masksub compare RECIPE --arms "
    "plain,plain-equal,masksub`.",
    "next.seeds": "Add seeds; three are the least, five the usual: `masksub compare RECIPE --seeds 5`.",
    "next.more-seeds": "To see a smaller difference, add seeds: with {more} in place of {seeds} the interval would "
    "have "
    "about {share:share} of its width.",
    "next.sweep": "Sweep mask ratio and weight: `masksub sweep RECIPE --ratio 0.25,0.5,0.75 --weight 0.25,0.5,0.75`.",
    "next.edge": "Sweep further along {names:names}: the recommended setting is the outermost that was tried.",
    "next.longer": "Repeat it at the length and model size that you train in production: gains of short runs need not "
    "hold there.",
    "next.held-out": "Before you rely on it, evaluate the chosen model once on images that decided nothing: "
    "`masksub eval RUN --data FOLDER`.",
    # What this does not show.
    "limits.one": "One data set ({data}) and one model ({model}): other data and other models may answer differently.",
    "limits.seeds": "{seeds:count.seed} of {who:arm}: small differences stay hidden in noise.",
    "limits.sample": "The intervals cover the luck of the seed, not that of which images the validation set holds.",
    "limits.epochs": "A recipe of {epochs:count.epoch}: what longer training would show is open.",
    "limits.chosen": "The recommended setting was chosen among {tried} on the validation images themselves, so its "
    "accuracy is optimistic.",
    "limits.best-of": "{who:arm} is the best of {arms:arms} on the validation images, so its accuracy is optimistic.",
    "limits.validation": "Accuracy is that of the last evaluation on the validation images, not on a separate test "
    "set.",
    "limits.many": "{n} comparisons are shown and the intervals are not corrected for their number.",
    "limits.environments": "The runs were made in {n} different environments: compare their times and memory with "
    "care.",
    "limits.speed": "Times, memory and energy are those of the machine named below.",
}  # fmt: skip
