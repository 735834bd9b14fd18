;; fee_transfer SENDER RECEIVER FEE_ACCOUNT AMOUNT FEE_BPS
;;
;; RECEIVER gets AMOUNT. SENDER pays AMOUNT and the fee, which goes to FEE_ACCOUNT:
;; fee = AMOUNT * FEE_BPS / 10000, rounded down. FEE_BPS are basis points: 50 are 0.5 %.
;;
;; Returns 0, or 1 INSUFFICIENT_FUNDS, 128 BAD_AMOUNT, 129 BAD_FEE.
(module
  (import "ledger" "credit" (func $credit (param $account i64) (param $amount i64)))
  (import "ledger" "debit" (func $debit (param $account i64) (param $amount i64)))
  (import "ledger" "get_balance" (func $get_balance (param $account i64) (result i64)))

  (func (export "execute")
    (param $sender i64) (param $receiver i64) (param $fee_account i64)
    (param $amount i64) (param $fee_bps i64) (param i64 i64 i64)
    (result i32)
    (local $fee i64)
    (local $total i64)

    (if (i64.le_s (local.get $amount) (i64.const 0))
      (then (return (i32.const 128))))

    ;; Read as unsigned, a negative rate is a very large one: one comparison refuses both.
    (if (i64.gt_u (local.get $fee_bps) (i64.const 10000))
      (then (return (i32.const 129))))

    ;; amount * fee_bps may not fit into 64 bits. Whole ten-thousands and the rest, each times the
    ;; rate, do, and give the same fee: with amount = 10000 q + r, the fee is q * bps + r * bps / 10000.
    (local.set $fee
      (i64.add
        (i64.mul
          (i64.div_u (local.get $amount) (i64.const 10000))
          (local.get $fee_bps))
        (i64.div_u
          (i64.mul
            (i64.rem_u (local.get $amount) (i64.const 10000))
            (local.get $fee_bps))
          (i64.const 10000))))

    ;; The fee is at most the amount, so the total fits into an unsigned number, but perhaps not into
    ;; a signed one. It is negative then, and no balance is that large.
    (local.set $total (i64.add (local.get $amount) (local.get $fee)))
    (if (i32.or
          (i64.lt_s (local.get $total) (i64.const 0))
          (i64.lt_s (call $get_balance (local.get $sender)) (local.get $total)))
      (then (return (i32.const 1))))

    (call $credit (local.get $sender) (local.get $total))
    (call $debit (local.get $receiver) (local.get $amount))
    (call $debit (local.get $fee_account) (local.get $fee))
    (i32.const 0)))
