"""How values, names and the sentences of the verdict read in Japanese. ``texts_en`` has the same keys."""

__all__ = ["MESSAGES"]

MESSAGES: dict[str, str] = {
    # How values are written.
    "absent": "\u2013",
    "list.separator": "、",
    "space": "",
    "list.semicolon": "；",
    "with": "{value}（{more}）",
    "range.dash": "〜",
    "unit.points": "{n}\u00a0ポイント",
    "unit.percent": "{n}%",
    "unit.times": "{n}倍",
    "time.seconds": "{s}秒",
    "time.minutes": "{m}分{s}秒",
    "time.hours": "{h}時間{m}分",
    "date": "{year}年{month}{day}日",
    "month.1": "1月", "month.2": "2月", "month.3": "3月", "month.4": "4月", "month.5": "5月", "month.6": "6月",
    "month.7": "7月", "month.8": "8月", "month.9": "9月", "month.10": "10月", "month.11": "11月", "month.12": "12月",
    "count.seed.one": "{n} シード", "count.seed.other": "{n} シード",
    "count.run.one": "{n} 件", "count.run.other": "{n} 件",
    "count.epoch.one": "{n:number} エポック", "count.epoch.other": "{n:number} エポック",
    "count.setting.one": "{n} 通りの設定", "count.setting.other": "{n} 通りの設定",
    "count.class.one": "{n} クラス", "count.class.other": "{n} クラス",
    "interval": "{low:decimal} 〜 {high:decimal}",
    "interval.signed": "{low:signed} 〜 {high:signed}",
    "method.paired t": "対応のある t 検定",
    "method.BCa bootstrap, exact sign-flip test": "BCa ブートストラップ法（p 値は符号反転検定、全通り）",
    "method.BCa bootstrap, random sign-flip test": "BCa ブートストラップ法（p 値は符号反転検定、無作為抽出）",
    "method.percentile bootstrap, exact sign-flip test": "パーセンタイル・ブートストラップ法（p 値は符号反転検定、"
    "全通り）",
    "method.percentile bootstrap, random sign-flip test": "パーセンタイル・ブートストラップ法（p 値は符号反転検定、"
    "無作為抽出）",
    "method.all differences are equal: no interval, exact sign-flip test": "差がすべて等しい場合は区間なし"
    "（p 値は符号反転検定、全通り）",
    "method.one pair, no interval": "1 組のみの場合は区間なし",
    "method.no pair": "組がない場合は値なし",
    # What is said within a sentence.
    "word.equal-epochs": "同一エポック数の通常学習",
    "word.other-epochs": "エポック数の異なる通常学習",
    "word.compute-untried": "同一計算量での比較は行われていない",
    "word.compute-open": "同一計算量で比較できる結果はまだない",
    # Names.
    "arm.plain": "通常学習",
    "arm.plain-equal": "通常学習（同一計算量）",
    "arm.masksub": "MaskSub",
    "arm.direct-mask": "通常学習に直接マスク",
    "arm.true-label-sub": "正解ラベルを使うサブブランチ",
    "arm.self-distill": "自己蒸留（マスクなし）",
    "arm.dropsub": "DropSub",
    "arm.pathsub": "PathSub",
    "arm.cosub": "CoSub",
    "status.complete": "完了",
    "status.failed": "発散",
    "status.reason": "{status}：「{reason}」",
    "status.incomplete": "未完了",
    # The verdict: headline.
    "headline.compute.better": "同一計算量で比べて、{who:arm} は通常学習より top-1 が {mean:size}高い。",
    "headline.compute.worse": "同一計算量で比べて、{who:arm} は通常学習より top-1 が {mean:size}低い。",
    "headline.compute.none": "同一計算量で比べて、{who:arm} と通常学習の間に差は認められなかった。",
    "headline.compute.unknown": "同一計算量で {who:arm} に効果があるかを判断するには、シード数が足りない。",
    "headline.epochs.better": "同一エポック数で比べて、{who:arm} は通常学習より top-1 が {mean:size}高い。"
    "{compute:word}。",
    "headline.epochs.worse": "同一エポック数で比べて、{who:arm} は通常学習より top-1 が {mean:size}低い。",
    "headline.epochs.none": "同一エポック数で比べて、{who:arm} と通常学習の間に差は認められなかった。",
    "headline.epochs.unknown": "{who:arm} に効果があるかを判断するには、シード数が足りない。",
    "headline.compute.no-interval": "同一計算量で比べて、{who:arm} と通常学習の差はすべてのシードで同じ "
    "{mean:points}である。"
    "信頼区間を示せないため、差があるとは判断しない。",
    "headline.epochs.no-interval": "同一エポック数で比べて、{who:arm} と通常学習の差はすべてのシードで同じ "
    "{mean:points}"
    "である。信頼区間を示せないため、差があるとは判断しない。",
    "headline.no-reference": "{who:arm} の学習結果はあるが、比較対象となる通常学習の結果がない。",
    "headline.no-pairs": "{who:arm} の学習結果はあるが、通常学習と共通して完了したシードがないため、まだ比較できない。",
    "headline.no-sub": "MaskSub やそれに類する手法の学習結果がないため、その効果については何も言えない。",
    "headline.no-run": "{who:arm} の学習がまだ一つも完了していないため、何も言えない。",
    "headline.epochs.differ": "{who:arm} と通常学習のエポック数が等しくないため、効果については何も言えない。",
    "headline.unequal.better": "{who:arm} は、その {ratio:times}の演算量で延長した通常学習より top-1 が "
    "{mean:size}高い。",
    "headline.unequal.worse": "{who:arm} は、その {ratio:times}の演算量で延長した通常学習より top-1 が "
    "{mean:size}低い。",
    "headline.unequal.none": "{who:arm} と、その {ratio:times}の演算量で延長した通常学習の間に差は認められなかった。",
    "headline.unequal.unknown": "延長した通常学習と比べて {who:arm} に効果があるかを判断するには、シード数が足りない。",
    "headline.unequal.no-interval": "{who:arm} と、その {ratio:times}の演算量で延長した通常学習の差は、"
    "すべてのシードで同じ {mean:points}である。信頼区間を示せないため、差があるとは判断しない。",
    "headline.failed": "{who:arm} は {all:count.run}中 {n} 件が発散した。発散したものは平均に含まれていない。",
    "gain.confounded": "比較した学習は {names:names} も異なるため、差はそれによるものである可能性がある。",
    # Gain at equal epochs.
    "epochs.better": "{who:arm} は通常学習より優れている。top-1 の差は {mean:points}（{level:share}信頼区間 "
    "{low:signed} 〜 {high:signed}、{seeds:count.seed}）。",
    "epochs.worse": "{who:arm} は通常学習より劣る。top-1 の差は {mean:points}（{level:share}信頼区間 "
    "{low:signed} 〜 {high:signed}、{seeds:count.seed}）。",
    "epochs.none": "差は認められなかった。top-1 の差の平均は {mean:points}で、{level:share}信頼区間 {low:signed} 〜 "
    "{high:signed} は 0 を含む（{seeds:count.seed}）。",
    "epochs.unknown": "{who:arm} と通常学習の差は {mean:points}（{seeds:count.seed}）。3 シード未満のため、"
    "偶然のばらつきと区別できるかどうかは判断できない。",
    "epochs.no-interval": "{who:arm} と通常学習の差は {mean:points}で、{seeds:count.seed}のすべてで等しい。"
    "信頼区間を示せないため、偶然のばらつきと区別できるかどうかは判断できない。",
    "epochs.same": "差は認められなかった。{who:arm} と通常学習の結果は {seeds:count.seed}のすべてで等しい。",
    "epochs.disputed": "差があるとは判断しない。top-1 の差の平均は {mean:points}で、{level:share}信頼区間 "
    "{low:signed} 〜 "
    "{high:signed} は 0 を含まないが、p 値（{p:p}）はそれを裏付けていない（{seeds:count.seed}）。",
    "epochs.none-complete": "不明。通常学習で完了したものがない。",
    "epochs.no-arm": "不明。通常学習の結果がない。",
    "epochs.no-pairs": "不明。{who:arm} と通常学習の両方で完了したシードがない。",
    "epochs.differ": "エポック数が等しくない。{who:arm} は {ours:number}、通常学習は {theirs:number}。",
    # Gain at equal compute.
    "compute.better": "同じ計算量になるまで延長した通常学習と比べても、{who:arm} は優れている。top-1 の差は "
    "{mean:points}（{level:share}信頼区間 {low:signed} 〜 {high:signed}、{seeds:count.seed}）。",
    "compute.worse": "同じ計算量になるまで延長した通常学習と比べると、{who:arm} は劣る。top-1 の差は "
    "{mean:points}（{level:share}信頼区間 {low:signed} 〜 {high:signed}、{seeds:count.seed}）。",
    "compute.none": "差は認められなかった。top-1 の差の平均は {mean:points}で、{level:share}信頼区間 {low:signed} 〜 "
    "{high:signed} は 0 を含む（{seeds:count.seed}）。",
    "compute.unknown": "{who:arm} と同一計算量の通常学習の差は {mean:points}（{seeds:count.seed}）。"
    "3 シード未満のため、偶然のばらつきと区別できるかどうかは判断できない。",
    "compute.no-interval": "{who:arm} と同一計算量の通常学習の差は {mean:points}で、"
    "{seeds:count.seed}のすべてで等しい。"
    "信頼区間を示せないため、偶然のばらつきと区別できるかどうかは判断できない。",
    "compute.same": "差は認められなかった。{who:arm} と同一計算量の通常学習の結果は "
    "{seeds:count.seed}のすべてで等しい。",
    "compute.disputed": "差があるとは判断しない。top-1 の差の平均は {mean:points}で、{level:share}信頼区間 "
    "{low:signed} 〜 "
    "{high:signed} は 0 を含まないが、p 値（{p:p}）はそれを裏付けていない（{seeds:count.seed}）。",
    "compute.none-complete": "不明。同一計算量の通常学習で完了したものがないため、"
    "差があっても計算量が増えただけの効果である可能性がある。",
    "compute.no-arm": "不明。同一計算量の通常学習が行われていないため、"
    "差があっても計算量が増えただけの効果である可能性がある。",
    "compute.no-pairs": "不明。{who:arm} と同一計算量の通常学習の両方で完了したシードがない。",
    "unequal.better": "計算量は等しくない。{who:arm} は、その {ratio:times}の演算量で延長した通常学習より優れている。"
    "top-1 の差は {mean:points}（{level:share}信頼区間 {low:signed} 〜 {high:signed}、{seeds:count.seed}）。",
    "unequal.worse": "計算量は等しくない。{who:arm} は、その {ratio:times}の演算量で延長した通常学習より劣る。"
    "top-1 の差は {mean:points}（{level:share}信頼区間 {low:signed} 〜 {high:signed}、{seeds:count.seed}）。",
    "unequal.none": "計算量は等しくない（延長した通常学習は {who:arm} の {ratio:times}）。差は認められなかった。"
    "top-1 の差の平均は {mean:points}で、{level:share}信頼区間 {low:signed} 〜 {high:signed} は 0 を含む"
    "（{seeds:count.seed}）。",
    "unequal.unknown": "{who:arm} と、その {ratio:times}の演算量で延長した通常学習の差は {mean:points}"
    "（{seeds:count.seed}）。3 シード未満のため、偶然のばらつきと区別できるかどうかは判断できない。",
    "unequal.no-interval": "{who:arm} と、その {ratio:times}の演算量で延長した通常学習の差は {mean:points}で、"
    "{seeds:count.seed}のすべてで等しい。信頼区間を示せないため、偶然のばらつきと区別できるかどうかは判断できない。",
    "unequal.same": "計算量は等しくない（延長した通常学習は {who:arm} の {ratio:times}）。差は認められなかった。"
    "結果は {seeds:count.seed}のすべてで等しい。",
    "unequal.disputed": "計算量は等しくない（延長した通常学習は {who:arm} の {ratio:times}）。差があるとは判断しない。"
    "top-1 の差の平均は {mean:points}で、{level:share}信頼区間 {low:signed} 〜 {high:signed} は 0 を含まないが、"
    "p 値（{p:p}）はそれを裏付けていない（{seeds:count.seed}）。",
    # Cost.
    "cost.alone": "1 回の学習あたり {flops:flops}、{seconds:duration}。比較対象となる通常学習で完了したものがない。",
    "cost.flops": "演算量は、{at:word}の {ratio:times}（{ours:flops}、通常学習は {theirs:flops}）。",
    "cost.seconds": "学習時間は {ratio:times}（1 回あたり {ours:duration}、通常学習は {theirs:duration}）。",
    "cost.memory": "最大メモリ使用量は {ratio:times}（{ours:bytes}、通常学習は {theirs:bytes}）。",
    "cost.energy": "消費エネルギーは {ratio:times}（{ours:joules}、通常学習は {theirs:joules}。測定対象：{of}）。",
    "cost.reach": "平均曲線は、通常学習の演算量の {share:share}の時点で、通常学習の最終精度に初めて到達する。",
    "cost.reach-own": "平均曲線は、通常学習の演算量の {share:share}の時点で、通常学習の最終精度に初めて到達する"
    "（通常学習自身の曲線では {own:share}の時点）。",
    "cost.never": "平均曲線は、通常学習の最終精度に到達しない。",
    # Certainty.
    "certainty.paired": "「{reference:arm}」との比較：対応のある {seeds:count.seed}（シード {seed_list:numbers}）、"
    "{level:share}信頼区間は{method:method}による。{p:p}。",
    "certainty.equal": "「{reference:arm}」との比較：対応のある {seeds:count.seed}（シード {seed_list:numbers}）。"
    "差がすべて等しいため、信頼区間は示せない。符号反転検定（全通り）で {p:p}。",
    "certainty.few": "「{reference:arm}」との比較：{seeds:count.seed}（シード {seed_list:numbers}）。"
    "3 シード未満では、偶然のばらつきについて何も主張できない。",
    "certainty.disputed": "「{reference:arm}」に対する信頼区間は 0 を含まないが、p 値はそれを裏付けていない。"
    "シードが少ないと区間は狭くなりすぎるため、差があるとは判断しない。",
    "certainty.nothing": "{who:arm} と通常学習で対応づけられるシードがないため、信頼区間はない。",
    "certainty.spread": "{who:arm} のシード間のばらつきは、標準偏差で {spread:plain_points}（{seeds:count.seed}）。",
    "certainty.failed": "{who:arm}：{all:count.run}中 {n} 件が発散した（シード {seeds:numbers}）。"
    "件数には数え、平均には含めていない。",
    "certainty.incomplete": "{who:arm}：{n:count.run}が未完了（シード {seeds:numbers}）。平均には含めていない。",
    "certainty.sweep-failed": "設定の探索：{n:count.run}が発散した。件数には数え、平均には含めていない。",
    "certainty.skipped": "読み込めない画像を除外した実行が{n:count.run}ある（実行の表の番号：{runs:runs}）。"
    "除外した画像は、各実行とも学習用 {training} 枚、検証用 {validation} 枚。",
    "certainty.survivors": "{who:arm} の平均には発散した学習が含まれていない。効果は発散の件数と併せて判断すること。",
    # Recommended setting.
    "recommended.longer": "計算量が制約となる場合は、通常のレシピのまま学習を延長する方がよい。"
    "{who:arm} が有利なのは、エポック数が固定されている場合に限られる。",
    "recommended.stay": "この結果に基づく限り、通常のレシピを使い続けることを勧める。",
    "recommended.nothing-yet": "この結果に基づく限り、通常のレシピを変更する根拠はまだない。",
    "recommended.unswept": "設定の探索は行われていない。今回の設定は {settings:settings}。次のコマンドで探索できる："
    "`masksub sweep RECIPE --ratio 0.25,0.5,0.75 --weight 0.25,0.5,0.75`",
    "recommended.unswept-unknown": "設定の探索は行われていない。次のコマンドで探索できる："
    "`masksub sweep RECIPE --ratio 0.25,0.5,0.75 --weight 0.25,0.5,0.75`",
    "recommended.unswept-other": "設定の探索は行われていない。今回の設定は {settings:settings}。",
    "recommended.only-failed": "まだ推奨できる設定はない。{n:count.run}が発散し、完了したものはない。"
    "ほかの設定を試す前に、発散の原因を調べる。",
    "recommended.none-complete": "{settings:count.setting}の探索が始められたが、完了したものはまだない。",
    "recommended.sweep": "{tried:count.setting}のうち {settings:settings}。top-1 は {mean:percent}"
    "（{level:share}信頼区間 {low:decimal} 〜 {high:decimal}、{seeds:count.seed}）。",
    "recommended.sweep-few": "{tried:count.setting}のうち {settings:settings}。top-1 は {mean:percent}"
    "（{seeds:count.seed}）。シード数が足りず、近い設定との優劣は判断できない。",
    "recommended.sweep-equal": "{tried:count.setting}のうち {settings:settings}。top-1 は {mean:percent}で、"
    "{seeds:count.seed}のすべてで等しい。",
    "recommended.own": "これは上の {who:arm} の設定であり、通常学習との比較は上に示した。",
    "recommended.versus.better": "この設定は、{at:word}より優れている。差は {mean:points}"
    "（{level:share}信頼区間 {low:signed} 〜 {high:signed}、{seeds:count.seed}）。",
    "recommended.versus.worse": "この設定は、{at:word}より劣る。差は {mean:points}"
    "（{level:share}信頼区間 {low:signed} 〜 {high:signed}、{seeds:count.seed}）。",
    "recommended.versus.none": "この設定と{at:word}との間に、差は認められなかった（{mean:points}、"
    "{level:share}信頼区間 {low:signed} 〜 {high:signed}、{seeds:count.seed}）。",
    "recommended.versus.same": "この設定と{at:word}との間に、差は認められなかった。"
    "結果は {seeds:count.seed}のすべてで等しい。",
    "recommended.versus.disputed": "この設定と{at:word}との間に差があるとは判断しない。差は {mean:points}で、"
    "{level:share}信頼区間 {low:signed} 〜 {high:signed} は 0 を含まないが、p 値（{p:p}）はそれを裏付けていない"
    "（{seeds:count.seed}）。",
    "recommended.versus.no-interval": "この設定と{at:word}の差は {mean:points}で、{seeds:count.seed}のすべてで等しい。"
    "信頼区間を示せないため、偶然のばらつきと区別できるかどうかは判断できない。",
    "recommended.versus.unknown": "この設定と{at:word}の差は {mean:points}（{seeds:count.seed}）。シード数が足りず、"
    "偶然のばらつきと区別できるかどうかは判断できない。",
    "recommended.confounded": "通常学習とは {names:names} も異なるため、差はそれによるものである可能性がある。",
    "recommended.not-best": "平均が最も高いのは {settings:settings} の {mean:percent}だが、推奨設定との差は認められず、"
    "推奨設定の方が計算量が少ないか、標準の設定に近い。",
    "recommended.best-fewer": "平均が最も高いのは {settings:settings} の {mean:percent}だが、完了したシードが少ない。",
    "recommended.sensitivity": "`{name}` を隣の値に変えたときの top-1 の平均の低下は、最大 {loss:plain_points}。",
    # What to try next.
    "next.resume": "未完了の学習を完了させる。同じコマンドを再実行すると、残りから再開する。",
    "next.run-masksub": "MaskSub で学習する：`masksub compare RECIPE`",
    "next.failed": "発散の原因を調べる（{arms:arms}）。`optim.lr` を下げるか、`optim.clip_norm` を指定してみる。",
    "next.failed-fp16": "発散の原因を調べる（{arms:arms}）。`optim.lr` を下げる、`optim.clip_norm` を指定する、"
    "`train.precision=bf16` にする、のいずれかを試す。",
    "next.plain": "効果を測る基準となる通常学習を加える：`masksub compare RECIPE`",
    "next.plain-equal": "同一計算量の通常学習を加える：`masksub compare RECIPE --arms plain,plain-equal,masksub`",
    "next.seeds": "シードを増やす。最低 3、通常は 5：`masksub compare RECIPE --seeds 5`",
    "next.more-seeds": "より小さな差を調べるには、シードを増やす。{seeds} から {more} に増やすと、"
    "信頼区間の幅は現在の約 {share:share}になる。",
    "next.sweep": "マスク率と重みを探索する：`masksub sweep RECIPE --ratio 0.25,0.5,0.75 --weight 0.25,0.5,0.75`",
    "next.edge": "推奨設定が探索範囲の端にあるため、{names:names} の範囲を広げて探索する。",
    "next.longer": "実運用と同じ学習の長さとモデルの規模で再確認する。短い学習での効果がそのまま得られるとは限らない。",
    "next.held-out": "採用する前に、選んだモデルを、どの判断にも使っていない画像で一度だけ評価する："
    "`masksub eval RUN --data FOLDER`",
    # What this does not show.
    "limits.one": "一つのデータセット（{data}）と一つのモデル（{model}）での結果であり、"
    "ほかのデータやモデルでは異なる可能性がある。",
    "limits.seeds": "{who:arm} は {seeds:count.seed}での結果であり、小さな差はばらつきに埋もれて見えない。",
    "limits.sample": "信頼区間が表すのはシードによる偶然のばらつきであり、検証画像の選び方による偶然は含まない。",
    "limits.epochs": "{epochs:count.epoch}のレシピでの結果であり、より長い学習でどうなるかは分からない。",
    "limits.chosen": "推奨設定は、{tried} 通りの中から検証画像そのものを使って選んだため、"
    "その精度は実際より高めに出ている可能性がある。",
    "limits.best-of": "{who:arm} は、検証画像で {arms:arms} の中から最も良いものを選んだため、"
    "その精度は実際より高めに出ている可能性がある。",
    "limits.validation": "精度は検証画像での最後の評価によるもので、独立したテストデータでのものではない。",
    "limits.many": "{n} 個の比較を示しているが、信頼区間に多重比較の補正はしていない。",
    "limits.environments": "{n} 種類の環境で学習が行われているため、時間とメモリの比較には注意が必要である。",
    "limits.speed": "時間、メモリ、エネルギーは、以下に示す計算機でのものである。",
}  # fmt: skip
